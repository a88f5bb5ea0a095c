"""An edited weight: its original, the sum of its changes, and how far it has moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import Delta, DenseDelta, LowRankDelta
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.refiners import Refiner

__all__ = ["EditedLayer", "LayerMeasures", "RefinedSum"]


@dataclass(frozen=True)
class LayerMeasures:
    """How far a layer has moved. All norms are Frobenius norms.

    "leading" is the norm of a change along the principal directions P of the corpus's keys, ||Delta P||. "rest" is the
    norm of what remains, ||Delta (I - P P^T)||. They measure how safe an edit is [the -F paper, section 5]. Both are
    NaN if no principal directions are given.

    Attributes:
        layer: number of the layer.
        step: norm of this batch's change.
        step_leading: norm of its leading part.
        step_rest: norm of its rest.
        total: norm of the sum of all changes so far.
        total_leading: norm of its leading part.
        total_rest: norm of its rest.
        relative: ``total`` divided by the norm of the unedited weight.
    """

    layer: int
    step: float
    step_leading: float
    step_rest: float
    total: float
    total_leading: float
    total_rest: float
    relative: float


class RefinedSum:
    """The sum of the changes of one weight, refined.

    Args:
        layer: number of the layer.
        original: gives the unedited weight, (d_out, d_in). It is only called if there is a refiner.
        refiner: refines the change of each batch, or the sum when it is published; ``None`` changes nothing.
    """

    def __init__(self, layer: int, original: Callable[[], Tensor], refiner: Refiner[Any] | None) -> None:
        self.sum = DeltaSum()
        self._layer = layer
        self._original = original
        self._refiner = refiner

    def add(self, delta: LowRankDelta) -> Delta:
        """Add the change of a batch. Returns what it was refined to."""
        refined: Delta = delta
        if self._refiner is not None and self._refiner.of_batches:
            refined = self._refiner.refine(self._layer, delta, changed(self._original(), self.sum.total))
        self.sum.add(refined)
        return refined

    def published(self) -> Delta:
        """The sum so far, as a model has it that is scored. Later changes do not affect it."""
        delta = self.sum.delta()
        if self._refiner is None or self._refiner.of_batches:
            return delta
        return self._refiner.refine(self._layer, delta, self._original())


def changed(original: Tensor, total: Tensor) -> Tensor:
    """``original`` (d_out, d_in) plus ``total``, summed in float32 and rounded once.

    ``total`` (d_out, d_in) is empty before the first change.
    """
    if not total.numel():
        return original
    return (original.float() + total.to(original.device, torch.float32)).to(original.dtype)


class EditedLayer:
    """An edited weight in a decoder.

    Args:
        decoder: the decoder, unedited.
        number: number of the layer.
        directions: (d_in, r) float64 principal directions to measure changes along, orthonormal; may be ``None``.
        refiner: what refines the changes, if anything.

    Attributes:
        number: number of the layer.
        original: the unedited weight, (d_out, d_in).
        sum: the sum of its changes.
    """

    def __init__(self, decoder: Decoder, number: int, directions: Tensor | None, refiner: Refiner[Any] | None) -> None:
        self.number = number
        self._weight = decoder.weight(number)
        self.original = self._weight.clone()
        self.sum = RefinedSum(number, lambda: self.original, refiner)
        self._norm = float(self.original.double().norm())
        self._directions = directions
        self._leading = DeltaSum()
        """(d_out, r) sum of all changes times the principal directions. It is kept because the product is expensive."""

    @property
    def total(self) -> Tensor:
        """(d_out, d_in) float64 sum of the changes so far; empty before the first one."""
        return self.sum.sum.total

    def add(self, delta: LowRankDelta) -> Delta:
        """Add the change of a batch. The weight itself changes in ``write``. Returns what it was refined to."""
        refined = self.sum.add(delta)
        if self._directions is not None:
            self._leading.add(_along(refined, self._directions))
        return refined

    def write(self) -> None:
        """Set the weight to its original plus the sum of its changes, if there are any."""
        if self.total.numel():
            self._weight.copy_(changed(self.original, self.total))

    def measures(self, delta: Delta) -> LayerMeasures:
        """The measures of the layer. ``delta`` is the change that was added last."""
        step, total = delta.norm(), float(self.total.norm())
        step_leading = total_leading = torch.nan
        if self._directions is not None:
            step_leading = _along(delta, self._directions).norm()
            total_leading = float(self._leading.total.norm())
        return LayerMeasures(
            self.number,
            step,
            step_leading,
            _rest(step, step_leading),
            total,
            total_leading,
            _rest(total, total_leading),
            total / self._norm,
        )

    def restore(self) -> None:
        """Set the weight to its original."""
        self._weight.copy_(self.original)


def _along(delta: Delta, directions: Tensor) -> Delta:
    """``delta`` times ``directions`` (d_in, r): a change (d_out, r)."""
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(delta.left, directions.T @ delta.right)
    dense = delta.dense()
    return DenseDelta(dense.double() @ directions.to(dense.device))


def _rest(norm: float, leading: float) -> float:
    """Norm of the rest of a matrix, from the norms of the whole matrix and of its leading part."""
    return torch.nan if math.isnan(leading) else float(max(norm**2 - leading**2, 0.0) ** 0.5)
