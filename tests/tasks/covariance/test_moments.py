"""C0 is the mean of k k^T on every device, and float32 products cost it no more than float32 keys do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from factsmith.tasks.covariance.moments import Moments
from tests.conftest import DEVICES

WIDTH, COUNT, GROUP = 96, 6000, 1024


@pytest.fixture(scope="module")
def keys() -> Tensor:
    """Keys like those of an MLP: most are near zero, a few are large, and some dimensions are much larger."""
    generator = torch.Generator().manual_seed(5)
    scale = torch.logspace(-2, 1, WIDTH)
    return torch.nn.functional.gelu(torch.randn(COUNT, WIDTH, generator=generator) * scale)


def summed(keys: Tensor, device: str, products: torch.dtype) -> Moments:
    moments = Moments(WIDTH, device, products)
    for group in keys.split(GROUP):
        moments.update(group.to(device))
    return moments


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("products", "error"), [(torch.float64, 1e-14), (torch.float32, 3e-7)])
def test_c0_by_hand(keys, device, products, error):
    moments = summed(keys, device, products)
    exact = keys.double()
    expected = exact.T @ exact / COUNT
    found = moments.covariance.cpu()
    assert torch.equal(found, found.T)
    assert float((found - expected).norm() / expected.norm()) < error
    # No entry is far off either, compared with the variances of its two dimensions.
    scale = expected.diagonal().sqrt()
    assert float(((found - expected) / scale / scale[:, None]).abs().max()) < 10 * error
    assert torch.allclose(moments.mean.cpu(), exact.mean(0), rtol=1e-6, atol=1e-9)
    assert moments.covariance.dtype == moments.mean.dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_float32_products_do_not_move_what_is_solved(keys, device):
    """The solutions that edits are made of, at a lambda of one."""
    wanted = torch.randn(WIDTH, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    solved = [
        torch.linalg.solve(summed(keys, device, products).covariance.cpu(), wanted)
        for products in (torch.float64, torch.float32)
    ]
    condition = float(torch.linalg.cond(summed(keys, "cpu", torch.float64).covariance))
    assert float((solved[0] - solved[1]).norm() / solved[0].norm()) < 3e-7 * condition


def test_a_copy_goes_its_own_way(keys):
    moments = summed(keys[:GROUP], "cpu", torch.float32)
    other = moments.copy()
    other.update(keys[GROUP:])
    assert (moments.count, other.count, other.products) == (GROUP, COUNT, torch.float32)
    assert not torch.equal(moments.covariance, other.covariance)
