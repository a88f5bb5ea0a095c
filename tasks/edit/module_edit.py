"""Changes of any linear modules of a model's blocks, such as the projections of queries and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import canonical_weight
from factsmith.tasks.edit.adding import added_to
from factsmith.tasks.edit.delta import Delta, read_deltas, tensors_of
from factsmith.tasks.edit.edit import Edit

__all__ = ["ModuleEdit", "ModulePlace", "module_weights", "stored_changes"]

ModulePlace: TypeAlias = tuple[int, str]
"""A module: its layer, and its name within the block."""


def module_weights(decoder: Decoder, places: Iterable[ModulePlace]) -> dict[ModulePlace, Tensor]:
    """The weight (d_out, d_in) of each module, a view of the parameter."""
    return {place: canonical_weight(decoder.blocks[place[0]].get_submodule(place[1])) for place in places}


@dataclass(frozen=True)
class ModuleEdit(Edit):
    """Changes of linear modules within the blocks.

    Attributes:
        deltas: the change of each module.
    """

    deltas: Mapping[ModulePlace, Delta]
    kind = "modules"

    def applied(self, decoder: Decoder) -> AbstractContextManager[None]:
        weights = module_weights(decoder, self.deltas)
        return added_to(weights, self.deltas, lambda place: f"{place[1]} of layer {place[0]}")

    @property
    def first_layer(self) -> int:
        return min(layer for layer, _ in self.deltas)

    def tensors(self) -> dict[str, Tensor]:
        """``N.NAME.left`` and ``N.NAME.right``, or ``N.NAME.dense``, of the module NAME of layer N."""
        return tensors_of({_name(place): delta for place, delta in self.deltas.items()})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        return cls(stored_changes(tensors))

    def summary(self) -> dict[str, Any]:
        return {"norm": {_name(place): delta.norm() for place, delta in self.deltas.items()}}


def stored_changes(tensors: Mapping[str, Tensor]) -> dict[ModulePlace, Delta]:
    """The changes that a ``ModuleEdit`` stored as ``tensors``, by layer and name."""
    found: dict[ModulePlace, Delta] = {}
    for name, delta in read_deltas(tensors).items():
        layer, _, inner = name.partition(".")
        found[int(layer), inner] = delta
    return dict(sorted(found.items()))


def _name(place: ModulePlace) -> str:
    return f"{place[0]}.{place[1]}"
