"""What earlier edits wrote, added to what a layer must preserve."""

from __future__ import annotations

import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky
from factsmith.tasks.covariance.spectrum import rank_of_energy
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["History", "principal_directions"]

_BLOCK = 2**18
"""Numbers that are read twice at a time: 2 MiB, for a core's own cache."""


class History:
    """Applies (A + H)^-1 for the keys of earlier edits, H = K_hist K_hist^T, where an operator applies A^-1.

    By Woodbury's identity, with S = A^-1 K_hist and I + K_hist^T S = L L^T,
    (A + H)^-1 = A^-1 - T T^T for T = S L^-T, which grows by B columns with every batch and is never computed again
    [FastEdit, eq. 8, one batch after the other]. On a null-space operator this is Q (L2 I + Q^T H Q)^-1 Q^T.

    An edit costs one application of A^-1 and one pass over T. Keys that are added wait for the next ``solve``, so that
    the same pass serves them and the keys that are to be solved.

    Args:
        operator: applies A^-1, which is symmetric.
    """

    def __init__(self, operator: PreservationOperator) -> None:
        self._operator = operator
        self._forget()

    def _forget(self) -> None:
        self._keys = _Rows()
        self._images = _Rows()  # the columns of T, one a row

    def __len__(self) -> int:
        return self._keys.count

    @property
    def keys(self) -> Tensor:
        """K_hist, (d_in, m) float64; a history that is given these keys again applies the same operator.

        Raises:
            ValueError: there are none.
        """
        return self._keys.filled.T

    def add(self, keys: Tensor) -> None:
        """Preserve ``keys`` (d_in, B), too, from now on."""
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

    def compress(self, energy: float, most: int) -> None:
        """Keep the leading directions of the keys alone [FastEdit, algorithm 1].

        Args:
            energy: share of the squared singular values of K_hist that they must hold; 1 keeps H as it is.
            most: directions kept at most.
        """
        if len(self):
            kept = principal_directions(self.keys, energy, most)
            self._forget()
            self.add(kept)


def principal_directions(keys: Tensor, energy: float, most: int) -> Tensor:
    """The left singular vectors of ``keys``, each times its singular value, as many as hold ``energy``.

    Args:
        keys: (d_in, m) float64.
        energy: share of the squared singular values, in (0, 1].
        most: columns at most.

    Returns:
        (d_in, r) float64, in falling order; its Gram matrix over columns is that of ``keys`` on the kept directions.
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
    """What keys whose images under the inverse are ``solved``, both (d_in, B), take from it: T^T, (B, d_in)."""
    core = keys.T @ solved
    core = (core + core.T) / 2
    core.diagonal().add_(1)
    rows: Tensor = torch.linalg.solve_triangular(cholesky(core), solved.T, upper=False)
    return rows


class _Rows:
    """Rows of a matrix that grows; room is made for twice as many at a time, so that one more costs no copy."""

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
        """F^T F X for the rows F so far and X of shape (d, B): both products of a block, while the cache holds it."""
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
