"""Factor a symmetric positive definite matrix once, and say clearly when there is none."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SingularMatrixError", "cholesky"]


class SingularMatrixError(Exception):
    """A matrix is not positive definite in float64.

    Attributes:
        size: its number of rows.
        rank: its numerical rank: eigenvalues above ``size * eps`` times the largest.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__(f"matrix of size {size} has numerical rank {rank}")
        self.size = size
        self.rank = rank


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor L of a symmetric ``matrix`` = L L^T.

    Args:
        matrix: (d, d) float64.

    Returns:
        (d, d) float64, lower triangular.

    Raises:
        SingularMatrixError: a pivot is not positive, or so small that rounding alone explains it: the solution would
            be noise that looks like numbers.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    if info.item() == 0 and bool((pivots > rounding * matrix.diagonal().max()).all()):
        return factor
    eigenvalues = torch.linalg.eigvalsh(matrix)
    raise SingularMatrixError(len(matrix), int((eigenvalues > rounding * eigenvalues.max()).sum()))
