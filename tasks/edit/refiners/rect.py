"""RECT: only the entries of a change that are large beside those of the weight are written  [Gu et al. 2024].

The entries with the largest |Delta / (W + 1e-8)| are kept, and all others are set to zero. One threshold holds for the
whole matrix. What remains is neither low-rank nor exact for the facts. It takes as much memory as the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from factsmith.tasks.edit.delta import Delta, DenseDelta
from factsmith.tasks.edit.refiners import Refiner
from factsmith.tasks.edit.settings import RectSettings

_SMALLEST = 1e-8
"""Added to the weight, as in the public code, so that an entry that is zero can be divided by."""


class Rect(Refiner[RectSettings]):
    """Refines the change of each batch, so that later batches build on what is left of it."""

    name = "rect"
    of_batches = True

    @property
    def is_dense(self) -> bool:
        return self.settings.kept < 1

    def refine(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        kept = self.settings.kept
        return delta if kept == 1 else DenseDelta(largest_entries(delta.dense(), weight, kept).float())


def largest_entries(change: Tensor, weight: Tensor, kept: float) -> Tensor:
    """``change`` with zeros in place of the entries that are smallest beside those of ``weight``.

    Args:
        change: (d_out, d_in) float64.
        weight: (d_out, d_in) weight that it is added to.
        kept: share of the entries to keep, in (0, 1]. Entries of the same size as the last of them are kept too.

    Returns:
        (d_out, d_in) float64.
    """
    sizes = (change / (weight.to(change) + _SMALLEST)).abs()
    count = max(1, round(kept * sizes.numel()))
    threshold = sizes.flatten().kthvalue(sizes.numel() - count + 1).values
    return torch.where(sizes >= threshold, change, 0.0)


REFINER = Rect
