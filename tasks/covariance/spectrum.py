"""Quantities derived from the eigenvalues of a covariance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["condition_number", "effective_rank", "leading_eigenvectors", "rank_of_energy", "spectrum"]

_MORE = 64
"""Vectors that the iteration carries beyond those that are asked for: the last ones converge slowest."""

_ROUNDS = 4
"""Products of the iteration. Eigenvalues that are half as large as the last one asked for then count 2^-8 as much."""


def spectrum(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric positive semidefinite ``matrix`` (d, d) float64, descending.

    Eigenvalues that are negative because of rounding are set to zero.
    """
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrix)
    return eigenvalues.flip(0).clamp(min=0)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues' shares of their sum: d if all are equal, 1 if only one is not zero.

    Roy and Vetterli 2007, *The effective rank: a measure of effective dimensionality*, definition 1.

    Args:
        eigenvalues: (d,) float64, not negative and not all zero.
    """
    shares = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(shares).sum().exp())


def condition_number(eigenvalues: Tensor) -> float:
    """The largest of ``eigenvalues`` (d,) float64, descending, divided by the smallest.

    It is infinite if the smallest is a rounding error: at most ``d eps`` times the largest, as in `cholesky`.
    """
    largest, smallest = float(eigenvalues[0]), float(eigenvalues[-1])
    singular = smallest <= len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * largest
    return float("inf") if singular else largest / smallest


def rank_of_energy(values: Tensor, energy: float, total: float | None = None) -> int:
    """The smallest number of leading ``values`` that hold the share ``energy`` of the sum of all.

    Args:
        values: (d,), descending and not negative.
        energy: the share, in (0, 1].
        total: the sum of all, if ``values`` are only the leading ones. The rank is d + 1 if they do not hold the
            share.
    """
    held = values.cumsum(0)
    return int((held < energy * (held[-1] if total is None else total)).sum()) + 1


def leading_eigenvectors(
    product: Callable[[Tensor], Tensor], width: int, most: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The leading eigenvectors of a symmetric positive semidefinite matrix M that is only known through its products.

    Subspace iteration from seeded random vectors, followed by Rayleigh-Ritz [Halko, Martinsson and Tropp 2011,
    algorithms 4.4 and 5.3]. It costs 5 products of M with ``most`` + 64 vectors, and is exact if these are ``width``.

    Args:
        product: gives M X, (width, n) float64, for X of the same shape.
        width: rows of M.
        most: number of eigenvectors, at most ``width``.
        device: where to compute.

    Returns:
        Eigenvalues (most,), descending, and eigenvectors (width, most), orthonormal; float64.
    """
    most = min(most, width)
    generator = torch.Generator().manual_seed(0)  # On the CPU, so that every device starts from the same vectors.
    start = torch.randn(width, min(width, most + _MORE), dtype=torch.float64, generator=generator)
    basis, _ = torch.linalg.qr(start.to(device))
    for _ in range(_ROUNDS if basis.shape[1] < width else 0):
        basis, _ = torch.linalg.qr(product(basis))
    core = basis.T @ product(basis)
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    return values.flip(0)[:most].clamp(min=0), basis @ vectors.flip(1)[:, :most]
