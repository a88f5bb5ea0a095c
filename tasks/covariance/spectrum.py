"""Quantities derived from the eigenvalues of a covariance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["condition_number", "effective_rank", "rank_of_energy", "spectrum"]


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


def rank_of_energy(values: Tensor, energy: float) -> int:
    """The smallest number of leading ``values`` that hold the share ``energy`` of the sum of all.

    ``values`` (d,) are descending and not negative.
    """
    held = values.cumsum(0)
    return int((held < energy * held[-1]).sum()) + 1
