"""Eigenpairs of a symmetric positive semidefinite matrix on one side of a cut, without the vectors on the other side.

Three ways give the same subspace. Which one costs least was measured on two cores, one thread each, with MKL's and
OpenBLAS's LAPACK, against ``torch.linalg.eigh``:

- ``krylov_eigenpairs``, for few leading eigenvectors. By the figures below, these are at most n / 13 on a CPU and n / 6
  on a GPU. For n / 40 of 3,072 it takes 0.2 of the time.
- On a CPU, all eigenvalues and the wanted vectors of the tridiagonal form. It takes 0.5 of the time for n / 8 of 3,072
  vectors, 0.7 for n / 2, and as long for all.
- The full decomposition, on another device. Neither cuSOLVER's partial decomposition nor its tridiagonal one is to be
  had through torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import LinAlgError, eigh_tridiagonal, eigvalsh_tridiagonal, lapack
from threadpoolctl import threadpool_limits
from torch import Tensor

from factsmith.tasks.covariance.krylov import Choice, chosen, krylov_eigenpairs

__all__ = ["Eigenpairs", "eigenpairs", "eigenpairs_flop"]

_DENSE_CPU = 11.0
"""A full decomposition takes as long as products of this many n^3 FLOP: 10.2 to 11.9 for n of 1,536 and 3,072."""

_DENSE_GPU = 40.0
"""The same on a GPU: about 2.5 s for n = 14,336 on one H100, of which products do some 50 TFLOP a second in float64.

The first figure is what is left of the time of a stage without its bytes. Neither was measured by itself.
"""

_TRIDIAGONAL = 4.8
"""The same of the tridiagonal way with few vectors, on a CPU."""

_SPEED = 0.5
"""FLOP in a second of the Krylov way, in multiples of those of large products: 0.43 to 0.5 for n = 2,560."""

_ERROR = 1e-13
"""Largest error of eigenvectors of a tridiagonal matrix, in multiples of its norm."""


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of a symmetric matrix (n, n).

    Attributes:
        values: eigenvalues (r,) float64, descending.
        vectors: (n, r) float64, orthonormal.
        first: position of the first of them, counted from the largest eigenvalue.
    """

    values: Tensor
    vectors: Tensor
    first: int


def eigenpairs(matrix: Tensor, choose: Choice) -> Eigenpairs:
    """The eigenpairs that ``choose`` wants.

    Args:
        matrix: (n, n) float64, symmetric positive semidefinite.
        choose: which eigenpairs are wanted. Positions beyond the last eigenvalue are left out.
    """
    on_cpu, width = matrix.device.type == "cpu", len(matrix)
    dense = _DENSE_CPU if on_cpu else _DENSE_GPU
    budget = _SPEED * (_TRIDIAGONAL if on_cpu else dense) * width**3
    if (leading := krylov_eigenpairs(matrix, choose, budget, dense)) is not None:
        return Eigenpairs(*leading, first=0)
    if on_cpu:
        # SciPy's BLAS has threads of its own, which runtime.threads must limit as well.
        with threadpool_limits(torch.get_num_threads(), user_api="blas"):
            exact = _tridiagonal_eigenpairs(matrix, choose)
        if exact is not None:
            return exact
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    wanted = chosen(choose, values)
    first, last = wanted.start, wanted.stop
    return Eigenpairs(values[first:last], vectors[:, first:last], first)


def eigenpairs_flop(width: int, rank: int) -> float:
    """FLOP of ``rank`` eigenpairs of a matrix with ``width`` rows, on a CPU.

    4 n^3 / 3 for the tridiagonal form and 2 n^2 r for its vectors [Golub and Van Loan 2013, section 8.3]. The Krylov
    way has about as many, in less time.
    """
    return 4 * width**3 / 3 + 2.0 * width**2 * rank


def _tridiagonal_eigenpairs(matrix: Tensor, choose: Choice) -> Eigenpairs | None:
    """By LAPACK, with vectors only of the wanted eigenpairs; ``None`` if LAPACK does not find them to rounding.

    Its vectors of a tridiagonal matrix (dstemr) are less exact if the cut parts eigenvalues that are nearly equal.
    """
    array, width = matrix.numpy(), len(matrix)
    # LAPACK stores columns. The transpose of a symmetric matrix is the same matrix, and it is stored so already.
    work, _ = lapack.dsytrd_lwork(width, lower=1)
    reflectors, diagonal, beside, scales, _ = lapack.dsytrd(array.T, lower=1, lwork=int(work))
    try:
        values = torch.from_numpy(eigvalsh_tridiagonal(diagonal, beside)[::-1].copy())
        wanted = chosen(choose, values)
        first, last = width - min(wanted.stop, width), width - 1 - wanted.start
        if first > last:
            return Eigenpairs(values[:0], matrix.new_empty(width, 0), wanted.start)
        kept, inner = eigh_tridiagonal(diagonal, beside, select="i", select_range=(first, last), lapack_driver="stemr")
    except (LinAlgError, ValueError):  # ValueError: the matrix is not finite.
        return None
    if not _exact(diagonal, beside, kept, inner):
        return None
    vectors = np.array(inner[:, ::-1], order="F")
    if width > 1:
        vectors[1:], _, _ = lapack.dormqr(
            "L", "N", np.asfortranarray(reflectors[1:, :-1]), scales, vectors[1:], 64 * vectors.shape[1]
        )
    return Eigenpairs(torch.from_numpy(kept[::-1].copy()), torch.from_numpy(vectors), wanted.start)


def _exact(diagonal: np.ndarray, beside: np.ndarray, values: np.ndarray, vectors: np.ndarray) -> bool:
    """Whether ``vectors`` (n, r) are orthonormal eigenvectors of a tridiagonal matrix, in O(n r) operations."""
    residual = (diagonal[:, None] - values) * vectors
    residual[:-1] += beside[:, None] * vectors[1:]
    residual[1:] += beside[:, None] * vectors[:-1]
    size = max(np.abs(diagonal).max(), np.abs(beside).max(initial=0.0))
    probe = np.random.default_rng(0).standard_normal(len(values))
    turned = np.abs(vectors.T @ (vectors @ probe) - probe).max()
    return bool(np.abs(residual).max() <= _ERROR * len(diagonal) * size and turned <= _ERROR * len(diagonal))
