"""Cholesky factorisation of a symmetric positive definite matrix, with a clear error if the matrix is singular."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SingularMatrixError", "cholesky", "least_ridge", "solve_factored"]

_SMALL = 256
"""Rows of a matrix that a CPU factorises and checks in less time than launching this on a GPU takes."""


class SingularMatrixError(Exception):
    """A matrix is not positive definite in float64.

    Attributes:
        size: number of rows.
        rank: numerical rank, the number of eigenvalues above ``size * eps`` times the largest.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__(f"matrix of size {size} has numerical rank {rank}")
        self.size = size
        self.rank = rank


def cholesky(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor L of a symmetric ``matrix`` = L L^T.

    Args:
        matrix: (d, d) float64.

    Returns:
        (d, d) float64, lower triangular.

    Raises:
        SingularMatrixError: the matrix is not positive definite, or it is so nearly singular that its smallest
            eigenvalue is a rounding error. LAPACK may then return a factor without an error, but solutions with it are
            noise.
    """
    if matrix.is_cuda and len(matrix) <= _SMALL:
        return cholesky(matrix.cpu()).to(matrix.device)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    if info.item() == 0:
        largest = _largest_eigenvalue(lambda vector: matrix @ vector, matrix)
        smallest = 1 / _largest_eigenvalue(lambda vector: solve_factored(factor, vector), matrix)
        if smallest > rounding * largest:
            return factor
    eigenvalues = torch.linalg.eigvalsh(matrix)
    raise SingularMatrixError(len(matrix), int((eigenvalues > rounding * eigenvalues.max()).sum()))


def least_ridge(matrix: Tensor) -> float:
    """The ridge with which ``cholesky`` can factorise a symmetric positive semidefinite ``matrix`` (d, d).

    The ridge is added to the diagonal. It is twice ``d eps trace``, where the trace bounds the largest eigenvalue. This
    is as small as rounding allows, so that a nearly singular matrix stays nearly singular.
    """
    return 2 * len(matrix) * torch.finfo(matrix.dtype).eps * float(matrix.trace())


def solve_factored(factor: Tensor, right: Tensor) -> Tensor:
    """(L L^T)^-1 ``right``, of shape (d, n), from the lower factor L.

    ``torch.cholesky_solve`` copies the factor in every call. For few columns, the copy costs many times as much as the
    solution.
    """
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return whole


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor, iterations: int = 12) -> float:
    """A lower bound of a symmetric positive operator's largest eigenvalue, by power iteration.

    Only the order of magnitude matters.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(like), 1, dtype=like.dtype, generator=generator).to(like.device)
    for _ in range(iterations):
        vector = apply(vector / vector.norm())
    return float(vector.norm())
