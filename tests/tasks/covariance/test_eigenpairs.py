"""Some eigenpairs of a matrix, against a full decomposition."""

from __future__ import annotations

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

from factsmith.tasks.covariance import eigenpairs as module
from factsmith.tasks.covariance.eigenpairs import eigenpairs
from factsmith.tasks.covariance.krylov import _KrylovSpace, krylov_eigenpairs
from tests.conftest import DEVICES

WIDTH = 500
PLENTY = 1e99
"""FLOP that no method needs."""


def spectra(width: int) -> dict[str, Tensor]:
    """Eigenvalues, descending."""
    places = torch.arange(1, width + 1, dtype=torch.float64)
    clustered = places**-1.0
    clustered[10:40] = clustered[10] - 1e-6 * clustered[10] * places[:30]
    return {
        "slow": places**-0.7,
        "fast": places**-2,
        "clustered": clustered,
        "deficient": torch.where(places <= 30, places**-0.5, 0.0),
        "wide": torch.logspace(0, -12, width, dtype=torch.float64),
    }


def of_spectrum(values: Tensor, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    matrix = basis * values @ basis.T
    return ((matrix + matrix.T) / 2).to(device)


def check(matrix: Tensor, values: Tensor, vectors: Tensor, first: int = 0) -> None:
    """Whether these are eigenpairs of ``matrix`` from the position ``first`` on, and span what they should."""
    count, largest = len(values), float(torch.linalg.eigvalsh(matrix)[-1])
    exact, basis = (part.flip(-1)[..., first : first + count] for part in torch.linalg.eigh(matrix))
    assert vectors.shape == (len(matrix), count)
    assert torch.allclose(vectors.T @ vectors, torch.eye(count).to(vectors), atol=1e-8)
    assert torch.allclose(values, exact, rtol=1e-12, atol=1e-13 * largest)
    assert (matrix @ vectors - vectors * values).norm() <= 1e-8 * largest
    if count:
        assert torch.linalg.svdvals(basis.T @ vectors).min() > 1 - 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spectrum", ["slow", "fast", "clustered"])
@pytest.mark.parametrize("rank", [1, 20])
def test_the_krylov_space_gives_the_leading_eigenpairs(device, spectrum, rank):
    matrix = of_spectrum(spectra(WIDTH)[spectrum], device)
    found = krylov_eigenpairs(matrix, rank, PLENTY, 1)
    assert found is not None
    check(matrix, *found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("missing", [0, 10, 19])
def test_an_eigenvector_that_the_krylov_space_does_not_contain_is_noticed(device, missing, monkeypatch):
    """Neither the residuals nor the other vectors show it."""
    matrix = of_spectrum(spectra(WIDTH)["slow"], device)
    assert krylov_eigenpairs(matrix, 20, PLENTY, 1) is not None
    complete = _KrylovSpace.ritz

    def without_one(space: _KrylovSpace) -> tuple[Tensor, ...]:
        return tuple(torch.cat([part[..., :missing], part[..., missing + 1 :]], -1) for part in complete(space))

    monkeypatch.setattr(_KrylovSpace, "ritz", without_one)
    assert krylov_eigenpairs(matrix, 20, PLENTY, 1) is None


@pytest.mark.parametrize("device", DEVICES)
def test_more_copies_of_an_eigenvalue_than_a_block_has_vectors(device):
    values = spectra(WIDTH)["fast"]
    values[:40] = values[0]
    matrix = of_spectrum(values, device)
    found = eigenpairs(matrix, 40)
    check(matrix, found.values, found.vectors)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(WIDTH, WIDTH), torch.eye(WIDTH), torch.ones(WIDTH, WIDTH)],
    ids=["zeros", "identity", "ones"],
)
def test_a_cut_between_equal_eigenvalues_is_left_to_a_full_decomposition(device, matrix):
    matrix = matrix.double().to(device)
    assert krylov_eigenpairs(matrix, 5, PLENTY, 1) is None
    found = eigenpairs(matrix, 5)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(5).to(matrix), atol=1e-12)
    assert torch.allclose(matrix @ found.vectors, found.vectors * found.values, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_leading_or_not_cheap_is_left_to_others(device):
    matrix = of_spectrum(spectra(WIDTH)["slow"], device)
    assert krylov_eigenpairs(matrix, lambda values: range(490, 500), PLENTY, 1) is None
    assert krylov_eigenpairs(matrix, 5, 1e6, 1) is None
    assert krylov_eigenpairs(matrix, 400, PLENTY, 1) is None
    assert krylov_eigenpairs(matrix[:100, :100], 5, PLENTY, 1) is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spectrum", ["slow", "fast"])
def test_the_estimated_spectrum_has_the_ranks_of_the_true_one(device, spectrum):
    values = spectra(WIDTH)[spectrum]
    seen: list[Tensor] = []
    krylov_eigenpairs(of_spectrum(values, device), lambda found: seen.append(found) or range(1, 2), PLENTY, 1)
    estimate = seen[0].cpu()
    assert estimate.shape == values.shape
    assert estimate.sum() == pytest.approx(float(values.sum()), rel=0.1)
    for threshold in (values[10], values[100]):
        assert int((estimate >= threshold).sum()) == pytest.approx(int((values >= threshold).sum()), rel=0.3, abs=5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [1, 2, 3, 40])
@pytest.mark.parametrize("spectrum", ["slow", "clustered", "deficient", "wide"])
def test_any_range_of_eigenpairs(device, width, spectrum):
    matrix = of_spectrum(spectra(40)[spectrum][:width], device)
    middle = width // 2
    for wanted in (range(middle), range(middle, width), range(width), range(width + 3), range(width, width), range(1)):
        found = eigenpairs(matrix, lambda values, wanted=wanted: wanted)
        assert found.first == wanted.start
        kept = min(wanted.stop, width) - wanted.start
        assert found.vectors.shape == (width, kept)
        if spectrum != "deficient" or wanted.stop in (width, width + 3) or width < 30:
            check(matrix, found.values, found.vectors, wanted.start)


def test_a_cut_through_a_cluster_is_as_exact_as_that_of_a_full_decomposition():
    """LAPACK's vectors of a tridiagonal matrix are not, which is noticed."""
    values = 1 + (torch.arange(200, dtype=torch.float64) < 100) + 1e-9 * torch.arange(200, dtype=torch.float64)
    matrix = of_spectrum(values, "cpu")
    found = eigenpairs(matrix, 1)
    assert (matrix @ found.vectors - found.vectors * found.values).norm() < 1e-13


@pytest.fixture
def decomposed(monkeypatch) -> list[int]:
    """Rows of the matrices that are decomposed in full, and of those that are made tridiagonal."""
    sizes: list[int] = []
    for owner, name in ((torch.linalg, "eigh"), (module, "_tridiagonal_eigenpairs")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda one, *rest, real=real: sizes.append(len(one)) or real(one, *rest))
    return sizes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "choose",
    [
        15,
        lambda values: range(int((values >= 0.02).sum())),
        lambda values: range(int((values.cumsum(0) < 0.9 * 1.64).sum()) + 1),
    ],
    ids=["rank", "threshold", "energy"],
)
def test_few_leading_eigenpairs_need_only_small_decompositions(device, choose, decomposed):
    matrix = of_spectrum(spectra(1000)["fast"], device)
    eigenpairs(matrix, choose)
    assert decomposed
    assert max(decomposed) < 400


def test_a_cpu_never_decomposes_in_full_for_some_vectors(decomposed, monkeypatch):
    matrix = of_spectrum(spectra(300)["slow"], "cpu")
    monkeypatch.setattr(torch.linalg, "eigh", None)
    for wanted in (range(10), range(150), range(280, 300)):
        eigenpairs(matrix, lambda values, wanted=wanted: wanted)
    assert decomposed == [300, 300, 300]


def test_lapack_has_as_many_threads_as_torch(monkeypatch):
    counts = []
    real = module._tridiagonal_eigenpairs

    def counted(*given):
        counts.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        return real(*given)

    monkeypatch.setattr(module, "_tridiagonal_eigenpairs", counted)
    with threadpool_limits(2, user_api="blas"):
        eigenpairs(of_spectrum(spectra(40)["slow"], "cpu"), 5)
    assert counts
    assert set(counts) == {torch.get_num_threads()} == {1}


def test_the_same_matrix_gives_the_same_bits():
    matrix = of_spectrum(spectra(1000)["fast"], "cpu")
    one, other = (eigenpairs(matrix, 15).vectors for _ in range(2))
    assert torch.equal(one, other)
