"""What the eigenvalues of a covariance tell about it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["condition_number", "effective_rank", "rank_of_energy", "spectrum"]


def spectrum(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric positive semidefinite ``matrix`` (d, d) float64, descending.

    Those that rounding makes negative are zero.
    """
    eigenvalues: Tensor = torch.linalg.eigvalsh(matrix)
    return eigenvalues.flip(0).clamp(min=0)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues as shares of their sum: d if all are equal, 1 if there is but one.

    Roy and Vetterli 2007, *The effective rank: a measure of effective dimensionality*, definition 1.

    Args:
        eigenvalues: (d,) float64, none negative, not all zero.
    """
    shares = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(shares).sum().exp())


def condition_number(eigenvalues: Tensor) -> float:
    """The largest of ``eigenvalues`` (d,) float64, descending, over the smallest; infinite if that is rounding.

    Rounding is what `cholesky` takes for it: ``d eps`` times the largest.
    """
    largest, smallest = float(eigenvalues[0]), float(eigenvalues[-1])
    singular = smallest <= len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * largest
    return float("inf") if singular else largest / smallest


def rank_of_energy(values: Tensor, energy: float) -> int:
    """How few of ``values`` (d,), none negative, the largest first, hold the share ``energy`` of their sum."""
    held = values.cumsum(0)
    return int((held < energy * held[-1]).sum()) + 1
