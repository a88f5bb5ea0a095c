"""The weights that a stack of deltas makes of a model's, and those that are left when it is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.deltas.exact import sum_of
from factsmith.tasks.deltas.file import DeltaFile
from factsmith.tasks.deltas.weights import as_stored, checksum, state_of, tensor_name, weight_at
from factsmith.tasks.edit.delta import Delta, overflow
from factsmith.tasks.edit.edit import Edit, ModuleEdit, ModulePlace, named_place
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit

__all__ = ["Stacked", "apply_stack", "undo_stack"]


@dataclass(frozen=True)
class Stacked(Edit):
    """Other weights for a model: those that a stack of deltas leaves.

    Attributes:
        weights: the new weight (d_out, d_in) of each changed module.
        state: state of the weights of the model that has them.
        expected: the state that the deltas say; ``None`` if they say none, because they are independent.
        ledger: the ledger of that model.
    """

    weights: Mapping[ModulePlace, Tensor]
    state: str
    expected: str | None
    ledger: Ledger
    kind = "stack"

    @property
    def exact(self) -> bool:
        """Whether the weights are, to the bit, those that the deltas say."""
        return self.state == self.expected

    @contextmanager
    def applied(self, decoder: Decoder) -> Iterator[None]:
        former = {place: weight_at(decoder, place).clone() for place in self.weights}
        try:
            for place, weight in self.weights.items():
                weight_at(decoder, place).copy_(weight)
            yield
        finally:
            for place, weight in former.items():
                weight_at(decoder, place).copy_(weight)

    @property
    def first_layer(self) -> int:
        return min(layer for layer, _ in self.weights)

    def tensors(self) -> dict[str, Tensor]:
        return {named_place(place): weight for place, weight in self.weights.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Self:
        raise NotImplementedError("a stack is not stored; its deltas are")


@torch.no_grad()
def apply_stack(
    decoder: Decoder,
    deltas: Sequence[DeltaFile],
    sums: Mapping[str, str],
    ledger: Ledger | None,
    *,
    independent: bool,
    advance: Callable[[int], None] = lambda done: None,
) -> Stacked:
    """The weights of a model with deltas. The model itself is not changed.

    Args:
        decoder: the model.
        deltas: the deltas, in order, checked.
        sums: the checksums of the model's weights.
        ledger: the model's ledger, if it has one.
        independent: whether to add up all changes and round once.
        advance: called with the number of weights that have been changed.

    Raises:
        InputError: a changed weight is NaN or infinite; names the module.
    """
    new = _NewWeights(decoder, sums, advance)
    if independent and len(deltas) > 1:
        for place, delta in _total(deltas).items():
            new.put(place, delta.added_to(new.at(place)))
        whole = (ledger or deltas[0].former_ledger).followed_by(*(edit for one in deltas for edit in one.added))
        return new.stacked(None, whole)
    for one in deltas:
        for place in one.places:
            new.put(place, one.applied_to(place, new.at(place)))
    return new.stacked(deltas[-1].about.after, deltas[-1].ledger)


@torch.no_grad()
def undo_stack(
    decoder: Decoder,
    deltas: Sequence[DeltaFile],
    sums: Mapping[str, str],
    ledger: Ledger | None,
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> Stacked:
    """The weights of a model without deltas, the last one taken back first. The arguments are those of ``apply_stack``.

    Where the kept entries of the former weights are not those of this model, because other deltas are on top, the
    change is subtracted alone, which gives the former weights to rounding.
    """
    new = _NewWeights(decoder, sums, advance)
    on_top = deltas[-1].about.after == state_of(sums)
    for one in reversed(deltas):
        for place in one.places:
            new.put(place, one.undone_in(place, new.at(place), exactly=on_top))
    former = deltas[0].former_ledger
    if not on_top and ledger is not None:
        former = ledger.model_copy(update={"edits": _without(ledger.edits, deltas)})
    return new.stacked(deltas[0].about.before, former)


def _without(edits: Sequence[LedgerEdit], deltas: Sequence[DeltaFile]) -> tuple[LedgerEdit, ...]:
    """The edits of a model from which deltas are taken back: what a delta removed takes the place of what it added."""
    left = list(edits)
    for one in reversed(deltas):
        place = min((place for place, edit in enumerate(left) if edit.edit in {its.edit for its in one.added}))
        left[place : place + one.about.adds] = one.about.removes
    return tuple(left)


class _NewWeights:
    """The weights of a model with some that are replaced."""

    def __init__(self, decoder: Decoder, sums: Mapping[str, str], advance: Callable[[int], None]) -> None:
        self._decoder = decoder
        self._sums = sums
        self._advance = advance
        self._weights: dict[ModulePlace, Tensor] = {}

    def at(self, place: ModulePlace) -> Tensor:
        """The weight (d_out, d_in) of the module at ``place`` so far."""
        return self._weights[place] if place in self._weights else weight_at(self._decoder, place)

    def put(self, place: ModulePlace, weight: Tensor) -> None:
        """Replace it."""
        if not weight.isfinite().all():
            raise overflow(weight.dtype, f"The delta makes weights of {ModuleEdit.described(place)} NaN or infinite.")
        self._weights[place] = weight
        self._advance(1)

    def stacked(self, expected: str | None, ledger: Ledger) -> Stacked:
        """The new weights, with their state."""
        changed = {
            tensor_name(self._decoder, place): checksum(as_stored(self._decoder, place, weight))
            for place, weight in self._weights.items()
        }
        state = state_of({**self._sums, **changed})
        return Stacked(self._weights, state, expected, ledger.model_copy(update={"state": state}))


def _total(deltas: Sequence[DeltaFile]) -> dict[ModulePlace, Delta]:
    """The sum of the changes of each module, in the order of the deltas."""
    found: dict[ModulePlace, Delta] = {}
    for one in deltas:
        for place, delta in one.new.items():
            found[place] = sum_of(found[place], delta) if place in found else delta
    return found
