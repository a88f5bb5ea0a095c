"""Laws of held-out leverage and of spectra."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky
from factsmith.tasks.covariance.leverage import held_out_leverages
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.covariance.spectrum import condition_number, effective_rank, spectrum

WIDTH = 20


def draw(count: int, seed: int) -> Tensor:
    """Gaussian keys, far from alike in every direction."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=generator) @ mixing


def leverage(used: Tensor, keys: Tensor) -> float:
    return float(held_out_leverages(cholesky(used.mT @ used / len(used)), [keys]).mean())


def test_by_hand():
    """C0 = [[2, 1], [1, 2]], whose inverse is [[2, -1], [-1, 2]] / 3."""
    factor = cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    keys = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, -3.0]])
    expected = [2 / 6, 2 / 6, 54 / 6]
    assert held_out_leverages(factor, [keys]).tolist() == pytest.approx(expected, rel=1e-12)
    in_blocks = held_out_leverages(factor, [keys[:1].half(), keys[1:].double()])
    assert in_blocks.tolist() == pytest.approx(expected, rel=1e-12)
    assert in_blocks.dtype == torch.float64
    assert held_out_leverages(factor, []).shape == (0,)


@pytest.mark.parametrize("count", [30, 50, 100, 400])
def test_of_gaussian_keys_it_is_n_over_n_minus_d_minus_1(count):
    found = [leverage(draw(count, seed), draw(2000, 1000 + seed)) for seed in range(60)]
    assert sum(found) / len(found) == pytest.approx(count / (count - WIDTH - 1), rel=0.05)


def test_of_the_keys_that_c0_is_made_of_it_is_one():
    """trace(C0^-1 C0) = d, however few they are: only held-out keys tell."""
    used = draw(WIDTH + 2, 0)
    assert leverage(used, used) == pytest.approx(1, rel=1e-9)
    assert leverage(used, draw(2000, 1)) > 5


def test_it_does_not_change_with_the_basis():
    used, keys = draw(60, 0), draw(500, 1)
    other = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert leverage(used @ other, keys @ other) == pytest.approx(leverage(used, keys), rel=1e-6)


def test_effective_rank_by_hand():
    assert effective_rank(torch.full((7,), 3.0, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)) == pytest.approx(1)
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)  # entropy of 1.5 bits
    assert effective_rank(40 * shares) == pytest.approx(2**1.5)


def test_spectrum_and_condition_by_hand():
    values = spectrum(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    assert values.tolist() == pytest.approx([3, 1])
    assert condition_number(values) == pytest.approx(3)
    one_direction = spectrum(torch.ones(5, 5, dtype=torch.float64))
    assert one_direction.tolist() == pytest.approx([5, 0, 0, 0, 0], abs=1e-12)
    assert float(one_direction.min()) >= 0
    assert condition_number(one_direction) == math.inf


def test_a_copy_of_moments_goes_its_own_way():
    keys = draw(50, 0)
    moments = Moments(WIDTH)
    moments.update(keys[:30])
    other = moments.copy()
    other.update(keys[30:])
    assert (moments.count, other.count) == (30, 50)
    for found, count in ((moments, 30), (other, 50)):
        expected = keys[:count].float().double()
        torch.testing.assert_close(found.covariance, expected.mT @ expected / count, rtol=1e-12, atol=1e-12)
