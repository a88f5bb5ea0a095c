"""Leading eigenvectors of a symmetric positive semidefinite matrix, from products with blocks of vectors.

Block Lanczos with full reorthogonalisation [Golub and Van Loan 2013, *Matrix Computations*, section 10.3.6]. Nearly all
of its work is products of large matrices, which are fast on every device. A full decomposition spends most of its time
on products of a matrix and a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Choice", "chosen", "krylov_eigenpairs", "krylov_flop"]

Choice: TypeAlias = int | Callable[[Tensor], range]
"""Which eigenpairs are wanted: the number of leading ones, or their positions, given all eigenvalues, descending.

The function may also be given estimates of all eigenvalues, or only the leading ones. Positions beyond the last one
given mean that these do not decide.
"""

_STEPS = 8
"""Steps after which the spectrum is estimated."""

_TOLERANCE = 1e-8
"""Largest residual of an eigenvector, relative to what the operators divide by. They then agree to about as much."""

_MORE = 1.4
"""Dimensions of the Krylov space, in multiples of the estimate, at which an iteration is given up."""


def chosen(choose: Choice, values: Tensor) -> range:
    """The positions that are wanted, given eigenvalues, descending."""
    return range(choose) if isinstance(choose, int) else choose(values)


def krylov_eigenpairs(matrix: Tensor, choose: Choice, budget: float, dense: float) -> tuple[Tensor, Tensor] | None:
    """The leading eigenpairs that ``choose`` wants, if they cost little.

    The result is verified: the vectors are orthonormal, their residuals are small, and the matrix has no other
    eigenvalue above the cut. The last is the Cholesky factorisation of mu I - (C - V Theta V^T), with mu in the gap
    between the eigenvalues beside the cut. Lanczos alone would miss copies of an eigenvalue with more copies than
    a block has vectors.

    Args:
        matrix: C, (n, n) float64, symmetric positive semidefinite.
        choose: which eigenpairs are wanted.
        budget: the most that it may cost, in FLOP as ``krylov_flop`` counts them.
        dense: FLOP of products that take as long as a full decomposition of an (n, n) matrix, in multiples of n^3.

    Returns:
        Eigenvalues (r,), descending, and eigenvectors (n, r), orthonormal; float64. ``None`` if they are not the
        leading ones, if they would cost more than ``budget``, or if they did not pass the verification.
    """
    width, block = len(matrix), _block(len(matrix))
    least = choose if isinstance(choose, int) else 1
    if (_STEPS + 1) * block >= width or krylov_flop(width, least, dense) > budget:
        return None
    space = _KrylovSpace(matrix, block)
    if isinstance(choose, int):
        wanted = range(choose)
    else:
        space.extend(_STEPS * block)
        wanted = choose(space.estimate())
    size = _dimensions(width, wanted.stop)
    if wanted.start or krylov_flop(width, wanted.stop, dense) > budget:
        return None
    most = min(_MORE * size, width - 2 * block)
    while size <= most:
        space.extend(size)
        values, vectors, residuals = space.ritz()
        wanted = chosen(choose, values)
        rank = wanted.stop
        if wanted.start:
            return None
        if 0 < rank < len(values):
            allowed, gap = _allowed(matrix, values, rank)
            worst = residuals[:rank].max()
            # Mixing across the cut is of second order, with the gap between the two eigenvalues beside the cut.
            if bool((worst <= allowed) & (worst.square() <= allowed * gap)):
                found = vectors[:, :rank].T @ space.rows
                return (values[:rank], found.T) if _verified(matrix, found, values, allowed) else None
        size += max(block, size // 10)
    return None


def krylov_flop(width: int, rank: int, dense: float) -> float:
    """FLOP of ``krylov_eigenpairs`` for ``rank`` vectors, with two decompositions of the projected matrix."""
    size = min(_dimensions(width, rank), width)
    iteration = 2.0 * width**2 * size + 2.0 * width * size**2
    verification = 4.0 * width**2 * rank + width**3 / 3
    return iteration + 2 * dense * size**3 + 2.0 * width * size * rank + verification


def _block(width: int) -> int:
    """Vectors of a block. Products with fewer are slow, and more of them lower the degree that a space reaches."""
    return max(16, min(128, width // 128))


def _dimensions(width: int, rank: int) -> int:
    """Dimensions of the Krylov space that ``rank`` eigenvectors need.

    Measured on eigenvalues that fall as i^-0.7 to i^-1.5, with n of 1,280 and 2,560 and ranks from n / 40 to n / 5.
    """
    return int(2.6 * rank) + 17 * _block(width)


def _allowed(matrix: Tensor, values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest residual that is allowed, and the gap at the cut.

    A^-1 divides by the eigenvalues that are kept and by the diagonal of the rest.
    """
    rest = (matrix.diagonal().sum() - values[:rank].sum()) / len(matrix)
    return _TOLERANCE * torch.minimum(values[rank - 1], rest), values[rank - 1] - values[rank]


def _verified(matrix: Tensor, rows: Tensor, values: Tensor, allowed: Tensor) -> bool:
    """Whether ``rows`` (r, n) are the leading eigenvectors. ``values`` (k,), k > r, has the next eigenvalue as well."""
    rank = len(rows)
    scaled = values[:rank, None] * rows
    residual = (rows @ matrix - scaled).norm(dim=1).max()
    gram = rows @ rows.T
    gram.diagonal().sub_(1)
    rest = torch.addmm(matrix, rows.T, scaled, beta=-1)
    rest.diagonal().add_((values[rank - 1] + values[rank]) / 2)
    _, info = torch.linalg.cholesky_ex(rest)
    return bool((residual <= 2 * allowed) & (gram.abs().max() <= _TOLERANCE) & (info == 0))


class _KrylovSpace:
    """An orthonormal basis of the span of X, C X, C^2 X, ... for a seeded random block X, and C in this basis."""

    def __init__(self, matrix: Tensor, block: int) -> None:
        width = len(matrix)
        # On the CPU, so that every device starts from the same vectors.
        start = torch.randn(width, block, dtype=matrix.dtype, generator=torch.Generator().manual_seed(0))
        first, _ = torch.linalg.qr(start.to(matrix.device))
        self._matrix, self._block = matrix, block
        self._rows: Tensor = first.T.contiguous()
        self._size = 0
        """Dimensions that have been multiplied with C. ``_rows`` has one block more."""
        self._projected = matrix.new_zeros(0, 0)
        self._last = matrix.new_zeros(block, block)
        """The part of C X that leads out of the space, for the last block X."""

    @property
    def rows(self) -> Tensor:
        """The basis, (k, n), as rows: products of rows with a matrix are faster than those with few columns."""
        return self._rows[: self._size]

    def extend(self, size: int) -> None:
        """Extend the space to ``size`` dimensions or, in whole blocks, a few more."""
        block, matrix = self._block, self._matrix
        steps = -(-(size - self._size) // block)
        end = self._size + steps * block
        self._rows = _grown(self._rows, end + block, matrix.shape[1])
        self._projected = _grown(self._projected, end, end)
        for stop in range(self._size + block, end + 1, block):
            start, before = stop - block, max(stop - 2 * block, 0)
            current = self._rows[start:stop]
            image = current @ matrix
            within = image @ current.T
            self._projected[start:stop, start:stop] = within
            image -= within @ current
            if start:
                self._projected[start:stop, before:start] = self._last
                image -= self._last @ self._rows[before:start]
            # Three terms suffice in exact arithmetic. Rounding lets the rest grow, so it is removed once more.
            image -= (image @ self._rows[:stop].T) @ self._rows[:stop]
            following, self._last = torch.linalg.qr(image.T)
            self._rows[stop : stop + block] = following.T
        self._size = end

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (k,), descending, Ritz vectors (k, k) in the basis, as columns, and norms (k,) of residuals."""
        values, vectors = torch.linalg.eigh(self._projected)  # It reads the lower triangle.
        vectors = vectors.flip(1)
        return values.flip(0), vectors, (self._last @ vectors[-self._block :]).norm(dim=0)

    def estimate(self) -> Tensor:
        """An estimate of all n eigenvalues of C, descending.

        By Gauss quadrature, a Ritz value stands for as many eigenvalues as the share of its vector in the random start
        says [Golub and Meurant 2010, *Matrices, Moments and Quadrature*, chapter 6].
        """
        values, vectors, _ = self.ritz()
        shares = vectors[: self._block].square().sum(0).cumsum(0) / self._block
        places = (torch.arange(len(self._matrix), device=shares.device, dtype=shares.dtype) + 0.5) / len(self._matrix)
        estimate: Tensor = values[torch.searchsorted(shares, places).clamp(max=len(values) - 1)]
        return estimate


def _grown(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """``matrix`` in the corner of a larger one of zeros."""
    grown = matrix.new_zeros(rows, columns)
    grown[: matrix.shape[0], : matrix.shape[1]] = matrix
    return grown
