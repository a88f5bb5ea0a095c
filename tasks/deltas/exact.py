"""Changes that can be made and taken back to the bit.

A change Delta is added in float32 and rounded to the data type of the weight. To subtract it gives back most entries of
the former weight, but not those of which the sum has kept fewer bits. These entries are kept with the change: they are
few, because only an entry that a change makes larger, by its power of two, loses bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.tasks.edit.delta import Delta, DenseDelta, LowRankDelta, plus

__all__ = ["BITS", "Kept", "exchanged", "kept", "negated", "put_back", "sum_of"]

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type of each size of number."""


@dataclass(frozen=True)
class Kept:
    """Entries of a tensor that a computation does not give.

    Attributes:
        values: (n,) their values, in the data type of the tensor; all of them, in its shape, if there is no ``index``.
        index: (n,) places in the row-major tensor, ascending, int32 if they fit; ``None`` if all entries are kept.
    """

    values: Tensor
    index: Tensor | None


def kept(computed: Tensor, wanted: Tensor, *, whole: bool = False) -> Kept | None:
    """The entries of ``wanted`` that differ in any bit from those of ``computed``; ``None`` if none do.

    Args:
        computed: what a computation gives.
        wanted: what it should give, of the same shape and data type.
        whole: keep all entries in any case. They are also kept if that takes less space than some with their places.
    """
    wanted = wanted.contiguous()
    different = _bits(computed.contiguous()) != _bits(wanted)
    count = int(different.sum())
    places = torch.int32 if wanted.numel() <= torch.iinfo(torch.int32).max else torch.int64
    if whole or count * (wanted.itemsize + places.itemsize) > wanted.nbytes:
        return Kept(wanted.clone(), None)
    if not count:
        return None
    index = different.flatten().nonzero().squeeze(1)
    return Kept(wanted.flatten()[index], index.to(places))


def put_back(computed: Tensor, entries: Kept | None) -> Tensor:
    """``computed`` with the kept entries in place of its own."""
    if entries is None:
        return computed
    if entries.index is None:
        return entries.values.to(computed.device)
    rows = computed.contiguous().clone()
    rows.view(-1)[entries.index.to(computed.device).long()] = entries.values.to(computed.device)
    return rows


def exchanged(weight: Tensor, off: Delta | None, entries: Kept | None, on: Delta | None) -> Tensor:
    """A weight with one change in place of another.

    Args:
        weight: (d_out, d_in) weight that has the change ``off``.
        off: the change that is taken back; ``None`` for nothing.
        entries: the entries of the weight without it that subtraction does not give.
        on: the change that is added then; ``None`` for nothing.
    """
    without = weight if off is None else put_back(negated(off).added_to(weight), entries)
    return without if on is None else on.added_to(without)


def negated(delta: Delta) -> Delta:
    """The change back."""
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(-delta.left, delta.right)
    return DenseDelta(-delta.dense())


def sum_of(one: Delta, other: Delta) -> Delta:
    """Their sum: the factors side by side if both are low-rank and that is smaller than the matrix, else dense."""
    return plus(one, other) if isinstance(other, LowRankDelta) else DenseDelta(one.dense() + other.dense())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(BITS[tensor.itemsize])
