"""Thin factors of a change: the fewest that give it, or the best of a given rank.

The singular value decomposition of left right^T follows from that of R_l R_r^T, where left = Q_l R_l and
right = Q_r R_r. The best approximation of rank r keeps the r largest singular values  [Eckart and Young 1936]. The
factors are U sqrt(S) and V sqrt(S), so that both are of the same size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.edit import ChangedWeights, Edit
from factsmith.tasks.pipeline.progress import progress

__all__ = ["Thin", "no_rank", "thin", "thin_edit"]

_ROUNDING = 2.0**-24
"""Half the distance from 1 to the next float32. What is dropped of an exact change is as small beside it."""


@dataclass(frozen=True)
class Thin:
    """A change in thin factors.

    Attributes:
        delta: the factors, float64. Their number of columns is the rank.
        full_rank: the rank of the change itself, to rounding in float32.
        error: relative error: Frobenius norm of what the factors lack, divided by that of the change.
    """

    delta: LowRankDelta
    full_rank: int
    error: float


def thin(delta: Delta, rank: int | None = None) -> Thin:
    """The factors of a change.

    Args:
        delta: the change, (d_out, d_in).
        rank: the most columns of the factors. ``None`` for as many as the change has to rounding in float32. A change
            that is zero has one.
    """
    left, values, right = _decomposed(delta)
    # [i]: norm of the singular values from i on. Summed from the smallest, so that small ones are not lost.
    rest = torch.cat([values.flip(0).square().cumsum(0).sqrt().flip(0), values.new_zeros(1)])
    full = max(1, int((rest > _ROUNDING * rest[0]).sum()))
    kept = full if rank is None else min(rank, full)
    roots = values[:kept].sqrt()
    error = float(rest[kept] / rest[0]) if rest[0] else 0.0
    return Thin(LowRankDelta(left[:, :kept] * roots, right[:, :kept] * roots), full, error)


def thin_edit(edit: Edit, rank: int) -> tuple[Edit, dict[str, Thin]]:
    """An edit whose changes have at most this rank, and each change in thin factors, by its place.

    Raises:
        InputError: the edit has a memory, of which there is no rank.
    """
    if not isinstance(edit, ChangedWeights):
        raise no_rank(f"an edit of the kind {edit.kind}")
    found = _thinned(edit.changes, rank)
    return edit.with_changes({place: one.delta for place, one in found.items()}), found


def no_rank(got: str) -> InputError:
    """The error that a memory is to be truncated."""
    return InputError("A memory has no rank.", got=got, expected="changes of weights", remedy="leave out --rank")


def _thinned(deltas: Mapping[str, Delta], rank: int) -> dict[str, Thin]:
    with progress("truncation", len(deltas)) as advance:
        found = {}
        for place, delta in deltas.items():
            found[place] = thin(delta, rank)
            advance(1)
        return found


def _decomposed(delta: Delta) -> tuple[Tensor, Tensor, Tensor]:
    """U (d_out, k), S (k,) descending and V (d_in, k) with U S V^T = the change, float64 on the CPU."""
    if not isinstance(delta, LowRankDelta):
        left, values, right = torch.linalg.svd(delta.dense().double().cpu(), full_matrices=False)
        return left, values, right.T
    left_basis, left = torch.linalg.qr(delta.left.double().cpu())
    right_basis, right = torch.linalg.qr(delta.right.double().cpu())
    inner_left, values, inner_right = torch.linalg.svd(left @ right.T, full_matrices=False)
    return left_basis @ inner_left, values, right_basis @ inner_right.T
