"""Leading eigenvectors from products alone, against a full decomposition."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.covariance.spectrum import leading_eigenvectors

CPU = torch.device("cpu")


def matrix(width: int, decay: float) -> torch.Tensor:
    """A covariance whose eigenvalues fall as a power of their rank, as those of keys do."""
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    values = torch.arange(1, width + 1, dtype=torch.float64) ** -decay
    return basis * values @ basis.T


@pytest.mark.parametrize(
    ("width", "most", "tolerance"), [(60, 100, 1e-12), (60, 60, 1e-12), (90, 40, 1e-12), (700, 64, 1e-3)]
)
def test_leading_eigenvectors_are_those_of_the_full_decomposition(width, most, tolerance):
    covariance = matrix(width, 1.5)
    values, vectors = leading_eigenvectors(covariance.__matmul__, width, most, CPU)
    kept = min(width, most)
    exact, basis = (part.flip(-1)[..., :kept] for part in torch.linalg.eigh(covariance))
    assert values.shape == (kept,)
    assert vectors.shape == (width, kept)
    assert torch.allclose(vectors.T @ vectors, torch.eye(kept, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(values, exact, rtol=tolerance)
    half = kept // 2  # The last ones turn most.
    turned = 1 - (basis[:, :half].T @ vectors).square().sum() / half
    assert turned < tolerance


def test_the_same_matrix_gives_the_same_bits():
    covariance = matrix(300, 1.0)
    one, other = (leading_eigenvectors(covariance.__matmul__, 300, 20, CPU)[1] for _ in range(2))
    assert torch.equal(one, other)
