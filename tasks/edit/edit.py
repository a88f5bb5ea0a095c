"""What a method makes of a model: an edit, which a model has while it is applied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from torch import Tensor, nn

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import Layout, module_name
from factsmith.tasks.edit.batch import applied
from factsmith.tasks.edit.delta import Delta, added_to, read_deltas, tensors_of

__all__ = [
    "OTHER_EDIT",
    "OTHER_TENSORS",
    "ChangedWeights",
    "Edit",
    "ModuleEdit",
    "ModulePlace",
    "WeightEdit",
    "named_place",
    "stored_changes",
]

Place = TypeVar("Place")

OTHER_EDIT = "edit.json"
"""The file with the kind of an edit that is not a ``WeightEdit``, and its values."""

OTHER_TENSORS = "edit.safetensors"
"""The file with its tensors."""


class Edit(ABC):
    """What a method makes of a model.

    An edit is stored as tensors and as values that JSON can hold, and is the same edit when it is read again.

    Attributes:
        kind: name of the kind of edit, which an artifact gives.
        adds_memory: whether the edited model has a memory beside its weights. A checkpoint cannot hold it, and passes
            have to say where their prompts end.
    """

    kind: ClassVar[str]
    adds_memory: ClassVar[bool] = False

    @abstractmethod
    def applied(self, decoder: Decoder) -> AbstractContextManager[None]:
        """Make ``decoder`` the edited model while open. Its former weights are restored to the bit afterwards.

        Raises:
            InputError: a changed weight is NaN or infinite in the model's data type; names the layer.
        """

    @property
    def changes(self) -> dict[str, Delta]:
        """The changes of weights that it is made of, by what messages call their place; empty for a memory."""
        return {}

    @property
    @abstractmethod
    def first_layer(self) -> int:
        """The lowest layer that is not as it was. The blocks below it give what they gave."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store, by name."""

    def values(self) -> dict[str, Any]:
        """Everything else to store, as values of JSON."""
        return {}

    @classmethod
    @abstractmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        """The edit that was stored as ``tensors`` and ``values``."""

    def summary(self) -> dict[str, Any]:
        """Numbers that describe it, for its manifest."""
        return {}

    def further_parameters(self) -> int:
        """Number of parameters that a pass of the edited model reads besides those of the unedited model."""
        return 0

    def further_flop(self, lengths: Sequence[int]) -> float:
        """The most FLOP that a pass of prompts of these lengths takes besides those of the unedited model."""
        return 0.0


ModulePlace: TypeAlias = tuple[int, str]
"""A module: its layer, and its name within the block."""


@dataclass(frozen=True)
class ChangedWeights(Edit, Generic[Place]):
    """An edit that is made of changes of weights, and of nothing else.

    Attributes:
        deltas: the change of each weight.
    """

    deltas: Mapping[Place, Delta]

    @staticmethod
    @abstractmethod
    def described(place: Place) -> str:
        """What messages call a place."""

    @abstractmethod
    def by_module(self, blocks: nn.ModuleList, layout: Layout) -> dict[ModulePlace, Delta]:
        """The change of each module.

        Args:
            blocks: the blocks of the model. Only the names and kinds of their modules are read.
            layout: the layout of its family.
        """

    @property
    def changes(self) -> dict[str, Delta]:
        return {self.described(place): delta for place, delta in self.deltas.items()}

    def with_changes(self, changes: Mapping[str, Delta]) -> Self:
        """The same edit with other changes, given as ``changes`` gives them."""
        return replace(self, deltas={place: changes[self.described(place)] for place in self.deltas})


@dataclass(frozen=True)
class WeightEdit(ChangedWeights[int]):
    """Changes of the MLP output projections of some layers. ``deltas`` has the change of each layer."""

    kind = "weights"

    @staticmethod
    def described(place: int) -> str:
        return f"layer {place}"

    def by_module(self, blocks: nn.ModuleList, layout: Layout) -> dict[ModulePlace, Delta]:
        return {
            (layer, module_name(blocks[layer], layout.projection(blocks[layer]))): delta
            for layer, delta in self.deltas.items()
        }

    def applied(self, decoder: Decoder) -> AbstractContextManager[None]:
        return applied(decoder, self.deltas)

    @property
    def first_layer(self) -> int:
        return min(self.deltas)

    def tensors(self) -> dict[str, Tensor]:
        """``layer.N.left`` (d_out, rank) and ``layer.N.right`` (d_in, rank), or ``layer.N.dense`` (d_out, d_in)."""
        return tensors_of({f"layer.{layer}": delta for layer, delta in self.deltas.items()})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        found = {int(name.removeprefix("layer.")): delta for name, delta in read_deltas(tensors).items()}
        return cls(dict(sorted(found.items())))

    def summary(self) -> dict[str, Any]:
        return {"norm": {str(layer): delta.norm() for layer, delta in self.deltas.items()}}


@dataclass(frozen=True)
class ModuleEdit(ChangedWeights[ModulePlace]):
    """Changes of linear modules within the blocks. ``deltas`` has the change of each module."""

    kind = "modules"

    @staticmethod
    def described(place: ModulePlace) -> str:
        return f"{place[1]} of layer {place[0]}"

    def by_module(self, blocks: nn.ModuleList, layout: Layout) -> dict[ModulePlace, Delta]:
        return dict(self.deltas)

    def applied(self, decoder: Decoder) -> AbstractContextManager[None]:
        blocks = decoder.blocks
        modules = {(layer, name): blocks[layer].get_submodule(name) for layer, name in self.deltas}
        return added_to(modules, self.deltas, self.described)

    @property
    def first_layer(self) -> int:
        return min(layer for layer, _ in self.deltas)

    def tensors(self) -> dict[str, Tensor]:
        """``N.NAME.left`` and ``N.NAME.right``, or ``N.NAME.dense``, of the module NAME of layer N."""
        return tensors_of({named_place(place): delta for place, delta in self.deltas.items()})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        return cls(stored_changes(tensors))

    def summary(self) -> dict[str, Any]:
        return {"norm": {named_place(place): delta.norm() for place, delta in self.deltas.items()}}


def stored_changes(tensors: Mapping[str, Tensor]) -> dict[ModulePlace, Delta]:
    """The changes that a ``ModuleEdit`` stored as ``tensors``, by layer and name."""
    found: dict[ModulePlace, Delta] = {}
    for name, delta in read_deltas(tensors).items():
        layer, _, inner = name.partition(".")
        found[int(layer), inner] = delta
    return dict(sorted(found.items()))


def named_place(place: ModulePlace) -> str:
    """The name of a module in files."""
    return f"{place[0]}.{place[1]}"
