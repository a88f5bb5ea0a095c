"""A delta file: a folder with the change from one state of a model's weights to another, and the ledger of the latter.

A delta adds a change to the weights. One that removes a fact first takes back the change of the edit with the fact, and
then adds that of the edit without it. ``delta.json`` says which states these are, and ``delta.safetensors`` holds, of
the module NAME of layer N,

- ``new.N.NAME.left`` (d_out, rank) and ``.right`` (d_in, rank), whose product is the change to add, or ``.dense``;
- ``former.N.NAME.left``, ``.right`` or ``.dense``: the change to take back before, if there is one;
- ``new.N.NAME.values`` and ``.index``, and ``former.N.NAME.values`` and ``.index``: the entries of the weights without
  the change that its subtraction does not give back (see ``exact``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.deltas.exact import Kept, exchanged
from factsmith.tasks.edit.delta import Delta, LowRankDelta
from factsmith.tasks.edit.edit import ModulePlace, named_place, stored_changes
from factsmith.tasks.ledger.ledger import LEDGER, Ledger, LedgerEdit, parsed, read_ledger

__all__ = [
    "ABOUT",
    "TENSORS",
    "Changed",
    "DeltaAbout",
    "DeltaFile",
    "Keeps",
    "read_delta",
    "sha256_of",
]

ABOUT = "delta.json"
"""The file that says what the delta is."""

TENSORS = "delta.safetensors"
"""The file with its tensors."""

Keeps: TypeAlias = Literal["entries", "tensors", "nothing"]
"""What is kept of the former weights: the entries that subtraction does not give back, whole tensors, or nothing."""

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{32,64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Changed(_Frozen):
    """A weight that a delta changes.

    Attributes:
        name: its name in the model.
        shape: (d_out, d_in).
        rank: number of columns of all thin factors; ``None`` if a change is dense.
        before: checksum of the tensor that the delta was made for.
        after: checksum of the tensor with the change.
        kept: number of entries that are kept.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    before: _Digest
    after: _Digest
    kept: int


class DeltaAbout(_Frozen):
    """What a delta is.

    Attributes:
        version: version of the format.
        base: what the run called the model that the delta was made from.
        weights: fingerprint of that model: the digest of its ``model`` artifact.
        dtype: data type of the weights.
        before: state of the weights that it applies to.
        after: state of the weights that it makes.
        tensors: the changed weights, by layer and name of their module: ``N.NAME``.
        keeps: what is kept of the former weights.
        adds: number of edits at the end of its ledger that the former weights do not have.
        removes: edits of the former weights that the new ones do not have, in their order.
        sha256: checksum of ``TENSORS``.
    """

    version: Literal[1] = 1
    base: str
    weights: str
    dtype: str
    before: _Digest
    after: _Digest
    tensors: dict[str, Changed]
    keeps: Keeps
    adds: int = Field(ge=0)
    removes: tuple[LedgerEdit, ...] = ()
    sha256: _Digest


@dataclass(frozen=True)
class DeltaFile:
    """A delta file.

    Attributes:
        folder: its folder.
        about: what it is.
        ledger: the ledger of a model that has it.
    """

    folder: Path
    about: DeltaAbout
    ledger: Ledger

    @cached_property
    def new(self) -> dict[ModulePlace, Delta]:
        """The change that is added to each module."""
        return stored_changes(_part(self._tensors, "new"))

    @cached_property
    def former(self) -> dict[ModulePlace, Delta]:
        """The change that is taken back before."""
        return stored_changes(_part(self._tensors, "former"))

    @property
    def places(self) -> list[ModulePlace]:
        """The modules that it changes."""
        return sorted({*self.new, *self.former})

    def applied_to(self, place: ModulePlace, weight: Tensor) -> Tensor:
        """The new weight (d_out, d_in) of the module at ``place``, of the former one."""
        return exchanged(weight, self.former.get(place), self._kept("former", place), self.new.get(place))

    def undone_in(self, place: ModulePlace, weight: Tensor, *, exactly: bool = True) -> Tensor:
        """The former weight (d_out, d_in) of the module at ``place``, of the new one.

        Args:
            place: the module.
            weight: its weight.
            exactly: whether ``weight`` is what the delta makes, so that the kept entries belong to it.
        """
        entries = self._kept("new", place) if exactly else None
        return exchanged(weight, self.new.get(place), entries, self.former.get(place))

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / TENSORS)

    def _kept(self, part: str, place: ModulePlace) -> Kept | None:
        name = f"{part}.{named_place(place)}"
        values = self._tensors.get(f"{name}.values")
        return None if values is None else Kept(values, self._tensors.get(f"{name}.index"))

    @property
    def added(self) -> tuple[LedgerEdit, ...]:
        """The edits that it adds to the ledger."""
        return self.ledger.edits[len(self.ledger.edits) - self.about.adds :]

    @property
    def former_ledger(self) -> Ledger:
        """The ledger of the former weights."""
        kept_edits = self.ledger.edits[: len(self.ledger.edits) - self.about.adds]
        return self.ledger.model_copy(update={"edits": (*kept_edits, *self.about.removes), "state": self.about.before})


def read_delta(folder: Path) -> DeltaFile:
    """The delta in ``folder``. Its tensors are checked, and read when they are needed.

    Raises:
        InputError: there is none, or its files are not those that were written.
    """
    folder = folder.expanduser()
    for name in (ABOUT, TENSORS, LEDGER):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} is not a delta.",
                got=f"no {name}" if folder.is_dir() else "no such folder",
                expected=f"a folder with {ABOUT}, {TENSORS} and {LEDGER}",
                remedy="write one with `factsmith export RUN --to delta --out DIR`",
            )
    about, ledger = parsed(DeltaAbout, folder / ABOUT), read_ledger(folder)
    assert ledger is not None
    if sha256_of(folder / TENSORS) != about.sha256:
        raise InputError(
            f"{folder / TENSORS} is not the file that {ABOUT} was written with.",
            expected=f"SHA-256 {about.sha256[:12]}...",
            remedy="copy the delta again, or export it again",
        )
    found = DeltaFile(folder, about, ledger)
    try:
        changes = [*found.new.items(), *found.former.items()]
        shapes = {(named_place(place), _shape(delta)) for place, delta in changes}
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{folder / TENSORS} cannot be read.", got=f"{type(error).__name__}: {error}") from None
    if shapes != {(name, one.shape) for name, one in about.tensors.items()} or about.adds > len(ledger.edits):
        raise InputError(
            f"The files of the delta {folder} do not belong together.",
            remedy="copy the delta again, or export it again",
        )
    return found


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one of the changes, by the rest of their name."""
    return {name.removeprefix(f"{part}."): one for name, one in tensors.items() if name.startswith(f"{part}.")}


def _shape(delta: Delta) -> tuple[int, ...]:
    if isinstance(delta, LowRankDelta):
        return len(delta.left), len(delta.right)
    return tuple(delta.dense().shape)


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
