"""Add changes to weights of a model, and restore the weights to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.edit.delta import Delta

__all__ = ["add_to", "added_to", "overflow"]

Place = TypeVar("Place")


def add_to(weights: Mapping[Place, Tensor], deltas: Mapping[Place, Delta], where: Callable[[Place], str]) -> None:
    """Add each change to the weight (d_out, d_in) at its place, permanently.

    Args:
        weights: the weights, which are written into.
        deltas: the changes.
        where: what a message calls a place.

    Raises:
        InputError: a changed weight is NaN or infinite in its data type; names the place.
    """
    for place, delta in deltas.items():
        changed = delta.added_to(weights[place])
        if not changed.isfinite().all():
            raise overflow(changed.dtype, f"The edit makes weights of {where(place)} NaN or infinite.")
        weights[place].copy_(changed)


@contextmanager
def added_to(
    weights: Mapping[Place, Tensor], deltas: Mapping[Place, Delta], where: Callable[[Place], str]
) -> Iterator[None]:
    """``add_to`` while open. The exact former weights are restored afterwards."""
    originals = {place: weights[place].clone() for place in deltas}
    try:
        add_to(weights, deltas, where)
        yield
    finally:
        for place, original in originals.items():
            weights[place].copy_(original)


def overflow(dtype: torch.dtype, what: str) -> InputError:
    """The error that numbers of a model in ``dtype`` are NaN or infinite. ``what`` says which."""
    wider = "set model.dtype=float32, or " if dtype != torch.float32 else ""
    return InputError(
        what,
        got=f"weights in {str(dtype).removeprefix('torch.')}",
        expected="finite numbers",
        remedy=f"{wider}lower dataset.batches, or what bounds an edit: method.value.clamp and "
        "method.value.learning_rate, or method.training.learning_rate of an editor",
    )
