"""The keys of earlier edits, added to what a layer must preserve."""

from __future__ import annotations

import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky
from factsmith.tasks.covariance.spectrum import rank_of_energy
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["History", "principal_directions"]

_BLOCK = 2**18
"""Numbers in a block that two products read in turn: 2 MiB of float64, which fit a core's own cache."""

_COLUMNS = 1024
"""Columns of the identity that are solved at once."""


class History:
    """Applies (A + H)^-1, where an operator applies A^-1 and H = K_hist K_hist^T holds the keys of earlier edits.

    By Woodbury's identity, with S = A^-1 K_hist and I + K_hist^T S = L L^T,
    (A + H)^-1 = A^-1 - T T^T for T = S L^-T. T grows by B columns with every batch, and its older columns are never
    recomputed [FastEdit, eq. 8, one batch after the other]. With a null-space operator, this is
    Q (L2 I + Q^T H Q)^-1 Q^T.

    An edit costs one application of A^-1 and one pass over T. Keys that are added wait for the next ``solve``, so that
    one pass serves both them and the keys to solve. ``absorb`` keeps the cost flat however long a sequence grows.

    Args:
        operator: operator that applies A^-1, which is symmetric.
    """

    def __init__(self, operator: PreservationOperator) -> None:
        self._operator = operator
        self._clear()

    def _clear(self) -> None:
        self._keys = _Rows()
        self._images = _Rows()  # The columns of T, stored as rows.

    def __len__(self) -> int:
        return self._keys.count

    @property
    def keys(self) -> Tensor:
        """K_hist, (d_in, m) float64. A new history to which these keys are added applies the same operator.

        Raises:
            ValueError: there are no keys.
        """
        return self._keys.filled.T

    def add(self, keys: Tensor) -> None:
        """Preserve ``keys`` (d_in, B) as well from now on."""
        self._keys.append(keys.double().T)

    def solve(self, keys: Tensor) -> Tensor:
        """(A + H)^-1 K for keys K of shape (d_in, B), float64."""
        first = self._images.count
        waiting = len(self) - first
        if waiting:
            keys = torch.cat([self._keys.filled[first:].T.to(keys.device), keys.double()], 1)
        solved = self._operator.solve(keys)
        keys = keys.to(solved)
        if first:
            solved = solved - self._images.gram_times(keys)
        if waiting:
            new = _images(keys[:, :waiting], solved[:, :waiting])
            self._images.append(new)
            keys, solved = keys[:, waiting:], solved[:, waiting:]
            solved = solved - new.T @ (new @ keys)
        return solved

    def absorb(self) -> None:
        """Make the keys part of A, so that the history is empty again: A + H takes the place of A.

        A^-1 is then a (d_in, d_in) matrix, which takes d_in applications of (A + H)^-1. Done after every d_in keys,
        this is one more application for each key, and T never has more columns than A^-1.
        """
        if len(self):
            self._operator = _Inverse.of(self, self.keys)
            self._clear()

    def compress(self, energy: float, most: int) -> None:
        """Keep only the leading principal directions of the keys [FastEdit, algorithm 1].

        Args:
            energy: share of the squared singular values of K_hist that they must hold; 1 keeps H unchanged, unless
                ``most`` limits it.
            most: maximum number of principal directions to keep.
        """
        if len(self):
            kept = principal_directions(self.keys, energy, most)
            self._clear()
            self.add(kept)


class _Inverse:
    """Applies A^-1 as a matrix (d_in, d_in) float64."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    @classmethod
    def of(cls, operator: PreservationOperator, like: Tensor) -> _Inverse:
        """The matrix of what ``operator`` applies, on the device of ``like`` (d_in, m)."""
        identity = torch.eye(len(like), dtype=torch.float64, device=like.device)
        matrix = torch.cat([operator.solve(columns) for columns in identity.split(_COLUMNS, dim=1)], 1)
        return cls((matrix + matrix.T) / 2)

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B), float64."""
        return self._matrix @ keys.to(self._matrix)


def principal_directions(keys: Tensor, energy: float, most: int) -> Tensor:
    """The leading left singular vectors of ``keys``, each times its singular value: as few as hold ``energy``.

    Args:
        keys: K, (d_in, m) float64.
        energy: share of the squared singular values that they must hold, in (0, 1].
        most: maximum number of columns.

    Returns:
        F, (d_in, r) float64, in descending order. F F^T equals K K^T on the kept directions.
    """
    width, count = keys.shape
    if count <= width:
        values, vectors = torch.linalg.eigh(keys.T @ keys)
        directions = keys @ vectors
    else:
        values, vectors = torch.linalg.eigh(keys @ keys.T)
        directions = vectors * values.clamp(min=0).sqrt()
    rank = rank_of_energy(values.flip(0).clamp(min=0), energy)
    leading: Tensor = directions.flip(1)[:, : min(rank, most)]
    return leading


def _images(keys: Tensor, solved: Tensor) -> Tensor:
    """The columns that ``keys`` add to T, as rows (B, d_in).

    ``solved`` is the product of the inverse so far and ``keys``. Both are (d_in, B).
    """
    core = keys.T @ solved
    core = (core + core.T) / 2
    core.diagonal().add_(1)
    rows: Tensor = torch.linalg.solve_triangular(cholesky(core), solved.T, upper=False)
    return rows


class _Rows:
    """The rows of a growing matrix. The storage doubles when it is full, so that few additions cause a copy."""

    def __init__(self) -> None:
        self.count = 0
        self._storage: Tensor | None = None

    @property
    def filled(self) -> Tensor:
        """The rows so far, (count, d)."""
        if self._storage is None:
            raise ValueError("no rows yet")
        return self._storage[: self.count]

    def gram_times(self, columns: Tensor) -> Tensor:
        """F^T F X for the rows F so far and X of shape (d, B). A block serves both products while it is in cache."""
        product = torch.zeros_like(columns)
        for block in self.filled.split(max(_BLOCK // self.filled.shape[1], columns.shape[1])):
            product.addmm_(block.T, block @ columns)
        return product

    def append(self, rows: Tensor) -> None:
        needed = self.count + len(rows)
        if self._storage is None or needed > len(self._storage):
            grown = rows.new_empty(max(needed, 2 * self.count, 16), rows.shape[1])
            if self._storage is not None:
                grown[: self.count] = self.filled
            self._storage = grown
        self._storage[self.count : needed] = rows
        self.count = needed
