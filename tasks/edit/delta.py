"""The change of one weight: two thin factors where it is low-rank, a dense matrix where it is not.

Changes are added to the weights of a model, and the weights restored to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import canonical_weight

__all__ = ["Delta", "DenseDelta", "LowRankDelta", "add_to", "added_to", "overflow", "plus", "read_deltas", "tensors_of"]

Place = TypeVar("Place")


class Delta(ABC):
    """The change of a weight (d_out, d_in)."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """An upper bound of its rank."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The change itself, (d_out, d_in), in the dtype that it is kept in."""

    @abstractmethod
    def norm(self) -> float:
        """Its Frobenius norm."""

    def added_to(self, weight: Tensor) -> Tensor:
        """``weight`` (d_out, d_in) plus the change, summed in float32 or wider, rounded once to the weight's dtype."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = self.dense().to(device=weight.device, dtype=wide)
        return (weight.to(wide) + total).to(weight.dtype)


@dataclass(frozen=True)
class LowRankDelta(Delta):
    """Delta = left @ right.T.

    Attributes:
        left: (d_out, rank) factor.
        right: (d_in, rank) factor.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of the factors."""
        return self.left.shape[1]

    def contiguous(self) -> LowRankDelta:
        """The same change with row-major factors, as they are read from a file."""
        return LowRankDelta(self.left.contiguous(), self.right.contiguous())

    def dense(self) -> Tensor:
        return self.left @ self.right.T

    def norm(self) -> float:
        """Frobenius norm of Delta, computed from the factors' Gram matrices."""
        gram = (self.left.T @ self.left) * (self.right.T @ self.right)
        return float(gram.sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class DenseDelta(Delta):
    """A change that has no thin factors. It takes as much memory as the weight itself does in its dtype.

    Attributes:
        change: (d_out, d_in).
    """

    change: Tensor

    @property
    def rank(self) -> int:
        return min(self.change.shape)

    def dense(self) -> Tensor:
        return self.change

    def norm(self) -> float:
        return float(self.change.norm())


def plus(one: Delta | None, other: LowRankDelta) -> Delta:
    """Their sum: the factors side by side, or a dense matrix once it is smaller. ``None`` is no change."""
    if one is None:
        return other
    rows, columns = len(other.left), len(other.right)
    if isinstance(one, LowRankDelta) and (one.rank + other.rank) * (rows + columns) <= rows * columns:
        return LowRankDelta(torch.cat([one.left, other.left], 1), torch.cat([one.right, other.right], 1))
    return DenseDelta(one.dense() + other.dense())


def tensors_of(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """The tensors of changes by name: ``NAME.left`` and ``NAME.right``, or ``NAME.dense``."""
    found: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        if isinstance(delta, LowRankDelta):
            found |= {f"{name}.left": delta.left, f"{name}.right": delta.right}
        else:
            found[f"{name}.dense"] = delta.dense()
    return found


def read_deltas(tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    """The changes that were stored as ``tensors``, by name."""
    found: dict[str, Delta] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part == "dense":
            found[name] = DenseDelta(tensor)
        elif part == "left":
            found[name] = LowRankDelta(tensor, tensors[f"{name}.right"])
    return found


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
    modules: Mapping[Place, nn.Module], deltas: Mapping[Place, Delta], where: Callable[[Place], str]
) -> Iterator[None]:
    """``add_to`` the weights of modules while open. The exact former weights are restored afterwards.

    They are restored to where the modules have their weights then: a model that is moved to another device or data
    type meanwhile has others.
    """
    weights = {place: canonical_weight(modules[place]) for place in deltas}
    originals = {place: weight.clone() for place, weight in weights.items()}
    try:
        add_to(weights, deltas, where)
        yield
    finally:
        for place, original in originals.items():
            canonical_weight(modules[place]).copy_(original)


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
