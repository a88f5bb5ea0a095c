"""Operators of low-rank models and null spaces that compute some eigenvectors, against full decompositions."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from factsmith.tasks.preservation.low_rank import LowRankPreservation
from factsmith.tasks.preservation.low_rank_model import LowRankModel, RankError, RankRule, prior
from factsmith.tasks.preservation.null_space import NullSpace, NullSpacePreservation
from tests.conftest import DEVICES

FLOOR = 1e-6
WIDTHS = [5, 60]

WIDE = 1000
"""Of this many, a few leading eigenvectors are computed in a Krylov space."""

CASES = [
    *product(WIDTHS, ["slow", "fast", "clustered", "deficient"], ["few", "half", "eigenvalues", "squared_eigenvalues"]),
    *product([WIDE], ["slow", "clustered", "deficient"], ["few"]),
    *product([WIDE], ["fast"], ["few", "eigenvalues", "squared_eigenvalues"]),
]


def spectra(width: int) -> dict[str, Tensor]:
    """Eigenvalues, descending; with a cluster that the cut of a fifteenth of the width goes through."""
    places = torch.arange(1, width + 1, dtype=torch.float64)
    clustered = places**-1.0
    clustered[1 : width // 2] = 0.3 * (1 - 1e-7 * places[1 : width // 2])
    return {
        "slow": places**-0.7,
        "fast": places**-2,
        "clustered": clustered,
        "deficient": torch.where(places <= max(1, width // 10), places**-0.5, 0.0),
    }


def factor_of(spectrum: str, width: int, device: str) -> Tensor:
    """F with F F^T of a given spectrum, (width, width) float64, in random directions."""
    generator = torch.Generator().manual_seed(width)
    basis, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    return (basis * spectra(width)[spectrum].sqrt()).to(device)


def keys_of(factor: Tensor) -> Tensor:
    """Keys whose covariance is F F^T."""
    generator = torch.Generator().manual_seed(1)
    return factor @ torch.randn(factor.shape[1], 20, dtype=torch.float64, generator=generator).to(factor)


def decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def rank_of(rule: RankRule, values: Tensor) -> int:
    if rule.rank is not None:
        return rule.rank
    shares = values.square() if rule.energy_of == "squared_eigenvalues" else values
    return int((shares.cumsum(0) < rule.energy * shares.sum()).sum()) + 1


def solved(covariance: Tensor, rule: RankRule, keys: Tensor) -> Tensor:
    """(U U^T + D)^-1 K by dense matrices, from all eigenvectors."""
    values, vectors = decomposed(covariance)
    rank = rank_of(rule, values)
    part = vectors[:, :rank] * values[:rank] @ vectors[:, :rank].T
    rest = (covariance - part).diagonal().clamp(min=FLOOR * float(covariance.diagonal().mean()))
    return torch.linalg.solve(part + rest.diag(), keys)


def near(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("width", "spectrum", "rule"),
    [case if place % 5 == 0 else pytest.param(*case, marks=pytest.mark.slow) for place, case in enumerate(CASES)],
)
def test_the_low_rank_operator_is_that_of_a_full_decomposition(device, width, spectrum, rule):
    factor = factor_of(spectrum, width, device)
    covariance, keys = factor @ factor.T, keys_of(factor)
    rank = {"few": max(1, width // 66), "half": width // 2}.get(rule)
    if spectrum == "deficient" and rule == "half":
        rank = max(1, width // 10)  # all there are
    chosen = RankRule(rank, 0.8, "squared_eigenvalues" if rule == "squared_eigenvalues" else "eigenvalues")
    expected = solved(covariance, chosen, keys)
    for model in (
        LowRankModel.of_covariance(covariance, chosen, FLOOR),
        LowRankModel.of_factor(factor, chosen, FLOOR),
    ):
        assert model.basis.shape[1] == rank_of(chosen, decomposed(covariance)[0])
        assert near(LowRankPreservation(model, 1.0).solve(keys), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", WIDTHS)
def test_one_rank_more_than_there_are_is_refused(device, width):
    factor = factor_of("deficient", width, device)
    most = max(1, width // 10)
    for make, matrix in ((LowRankModel.of_covariance, factor @ factor.T), (LowRankModel.of_factor, factor)):
        for rank in (most + 1, width + 1):
            with pytest.raises(RankError) as caught:
                make(matrix, RankRule(rank, 1.0, "eigenvalues"), FLOOR)
            assert caught.value.rank == most


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("width", "spectrum", "stay"),
    [
        *product(WIDTHS, ["slow", "fast", "deficient"], ["none", "one", "few", "half", "most", "all"]),
        *product([WIDE], ["slow", "fast"], ["few"]),
    ],
)
def test_the_null_space_is_that_of_a_full_decomposition(device, width, spectrum, stay):
    factor = factor_of(spectrum, width, device)
    covariance, keys = factor @ factor.T, keys_of(factor)
    values, vectors = decomposed(covariance)
    count = {"none": 0, "one": 1, "few": max(1, width // 66), "half": width // 2, "most": width - 2, "all": width}[stay]
    if spectrum == "deficient":
        count = min(count, max(1, width // 10))
    bounds = torch.cat([2 * values[:1], values, values.new_full((1,), -1.0)])
    space = NullSpace.of_covariance(covariance, float(bounds[count : count + 2].mean()))
    rest = vectors[:, count:]
    assert (space.dimensions, space.complement) == (width - count, 2 * count <= width)
    # What stays out is a rounding error of the keys.
    difference = NullSpacePreservation(space, l2=2.0).solve(keys) - rest @ (rest.T @ keys) / 2
    assert difference.norm() <= 1e-6 * max(float((rest.T @ keys).norm()), 1e-6 * float(keys.norm()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (1000, 1200)])
@pytest.mark.parametrize("rank", [1, 5, 12, 2000])
def test_the_prior_is_the_projections_leading_part(device, shape, rank):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(*shape, generator=generator) * torch.arange(1, shape[0] + 1)[:, None] ** -1.0
    weight = weight.to(device)
    factor = prior(weight, rank)
    _, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    assert factor.shape == (shape[1], min(rank, *shape))
    assert near(factor @ factor.T, right[:rank].T * values[:rank].square() @ right[:rank])
