"""PRUNE: a change whose singular values are no larger than they need be  [Ma et al. 2025].

Delta = U Sigma V^T is the sum of all changes of a weight W0. Singular values above s, the largest one of W0, are
lowered to log_a(sigma) - log_a(s) + s, and W = W0 + U Sigma' V^T. Where s ln(a) < 1, the logarithm would *raise* some
values. These stay as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.refiners import Refiner
from factsmith.tasks.edit.settings import PruneSettings


class Prune(Refiner[PruneSettings]):
    """Refines the sum of all changes that is published. Later batches build on the sum as it was."""

    name = "prune"
    of_batches = False

    def __init__(self, settings: PruneSettings) -> None:
        super().__init__(settings)
        self._largest: dict[int, float] = {}

    def refine(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        if layer not in self._largest:
            self._largest[layer] = largest_singular_value(weight)
        limit = self._largest[layer]
        # No singular value is above the Frobenius norm.
        return delta if delta.norm() <= limit else restrained(delta, limit, self.settings.base)


def largest_singular_value(weight: Tensor) -> float:
    """||W||_2 of ``weight`` (d_out, d_in), from the eigenvalues of its smaller Gram matrix in float64."""
    rows = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return float(torch.linalg.eigvalsh(rows @ rows.T)[-1].clamp(min=0).sqrt())


def restrained(delta: Delta, limit: float, base: float) -> LowRankDelta:
    """``delta`` with the singular values above ``limit`` lowered to log_a(sigma) - log_a(limit) + limit at most.

    Thin factors stay thin: their singular values are those of the small matrix between their orthonormal bases.

    Args:
        delta: the change, of rank r.
        limit: s.
        base: a.

    Returns:
        Factors (d_out, r) and (d_in, r), float64.
    """
    if isinstance(delta, LowRankDelta):
        columns, left = torch.linalg.qr(delta.left.double())
        rows, right = torch.linalg.qr(delta.right.double())
        inner_left, values, inner_right = torch.linalg.svd(left @ right.T, full_matrices=False)
        columns, rows = columns @ inner_left, rows @ inner_right.T
    else:
        columns, values, transposed = torch.linalg.svd(delta.dense().double(), full_matrices=False)
        rows = transposed.T
    lowered = (values / limit).log() / math.log(base) + limit
    values = torch.where(values > limit, torch.minimum(values, lowered), values)
    return LowRankDelta(columns * values, rows)


REFINER = Prune
