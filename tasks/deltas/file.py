"""A delta file: a folder with the change from one state of a model's weights to another, and the ledger of the latter.

``delta.json`` says which states these are, and ``delta.safetensors`` holds, of the module NAME of layer N,

- ``N.NAME.left`` (d_out, rank) and ``N.NAME.right`` (d_in, rank), whose product is the change, or ``N.NAME.dense``;
- ``N.NAME.to.values`` and ``.index``: entries of the new weight that the sum does not give (see ``exact``);
- ``N.NAME.back.values`` and ``.index``: entries of the former weight that the subtraction does not give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.deltas.exact import Kept, kept, negated, put_back, sum_of
from factsmith.tasks.deltas.weights import as_stored, checksum, checksums, state_of, tensor_name, weight_at
from factsmith.tasks.edit.delta import Delta, LowRankDelta, overflow, tensors_of
from factsmith.tasks.edit.edit import ModulePlace, stored_changes
from factsmith.tasks.ledger.ledger import LEDGER, Ledger, LedgerEdit, parsed, read_ledger

__all__ = [
    "ABOUT",
    "TENSORS",
    "Changed",
    "DeltaAbout",
    "DeltaFile",
    "Keeps",
    "named_place",
    "read_delta",
    "write_delta",
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
        rank: number of columns of the thin factors; ``None`` if there are none and the change is dense.
        before: checksum of the tensor that the delta was made for.
        after: checksum of the tensor with the change.
        kept: number of entries of the former weight that are kept.
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
    def _tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / TENSORS)

    @cached_property
    def changes(self) -> dict[ModulePlace, Delta]:
        """The change of each module."""
        return stored_changes(self._tensors)

    def entries(self, place: ModulePlace, which: Literal["to", "back"]) -> Kept | None:
        """The kept entries of the new weight of a module (``to``), or of the former one (``back``)."""
        values = self._tensors.get(f"{named_place(place)}.{which}.values")
        return None if values is None else Kept(values, self._tensors.get(f"{named_place(place)}.{which}.index"))

    @property
    def added(self) -> tuple[LedgerEdit, ...]:
        """The edits that it adds to the ledger."""
        return self.ledger.edits[len(self.ledger.edits) - self.about.adds :]

    @property
    def former_ledger(self) -> Ledger:
        """The ledger of the former weights."""
        kept_edits = self.ledger.edits[: len(self.ledger.edits) - self.about.adds]
        return self.ledger.model_copy(update={"edits": (*kept_edits, *self.about.removes), "state": self.about.before})


def named_place(place: ModulePlace) -> str:
    """The name of a module in a delta file."""
    return f"{place[0]}.{place[1]}"


def write_delta(
    folder: Path,
    decoder: Decoder,
    former: Mapping[ModulePlace, Delta],
    new: Mapping[ModulePlace, Delta],
    *,
    base: str,
    weights: str,
    keeps: Keeps,
    adds: int = 1,
    removes: Sequence[LedgerEdit] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> DeltaAbout:
    """Write the delta from a model with the changes ``former`` to the same model with the changes ``new``.

    The caller writes the ledger of the new weights beside it.

    Args:
        folder: an empty folder.
        decoder: the model without any of these changes.
        former: the changes of the former weights; empty for a delta of the model itself.
        new: the changes of the new weights.
        base: what the run called the model.
        weights: its fingerprint.
        keeps: what to keep of the former weights.
        adds: number of edits at the end of the ledger of the new weights that the former ones do not have.
        removes: edits of the former weights that the new ones do not have.
        advance: called with the number of bytes of the model that have been read.

    Raises:
        InputError: a changed weight is NaN or infinite; names the module.
    """
    sums = checksums(decoder, advance)
    before, after = dict(sums), dict(sums)
    tensors: dict[str, Tensor] = {}
    changed: dict[str, Changed] = {}
    for place in sorted({*former, *new}):
        weight, name, where = weight_at(decoder, place), tensor_name(decoder, place), named_place(place)
        old = former[place].added_to(weight) if place in former else weight.clone()
        changed_weight = new[place].added_to(weight) if place in new else weight.clone()
        if not (old.isfinite() & changed_weight.isfinite()).all():
            raise overflow(weight.dtype, f"The edit makes weights of {place[1]} of layer {place[0]} NaN or infinite.")
        delta = _difference(former.get(place), new.get(place))
        to = kept(delta.added_to(old), changed_weight) if place in former else None
        back = None
        if keeps != "nothing":
            back = kept(negated(delta).added_to(changed_weight), old, whole=keeps == "tensors")
        tensors |= {**tensors_of({where: delta}), **_stored(f"{where}.to", to), **_stored(f"{where}.back", back)}
        before[name], after[name] = (checksum(as_stored(decoder, place, one)) for one in (old, changed_weight))
        changed[where] = Changed(
            name=name,
            shape=(weight.shape[0], weight.shape[1]),
            rank=delta.rank if isinstance(delta, LowRankDelta) else None,
            before=before[name],
            after=after[name],
            kept=0 if back is None else back.values.numel(),
        )
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    about = DeltaAbout(
        base=base,
        weights=weights,
        dtype=str(next(decoder.model.parameters()).dtype).removeprefix("torch."),
        before=state_of(before),
        after=state_of(after),
        tensors=changed,
        keeps=keeps,
        adds=adds,
        removes=tuple(removes),
        sha256=_sha256(folder / TENSORS),
    )
    (folder / ABOUT).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _check_written(folder, about, decoder, former)
    return about


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
    if _sha256(folder / TENSORS) != about.sha256:
        raise InputError(
            f"{folder / TENSORS} is not the file that {ABOUT} was written with.",
            expected=f"SHA-256 {about.sha256[:12]}...",
            remedy="copy the delta again, or export it again",
        )
    found = DeltaFile(folder, about, ledger)
    try:
        shapes = {named_place(place): _shape(delta) for place, delta in found.changes.items()}
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{folder / TENSORS} cannot be read.", got=f"{type(error).__name__}: {error}") from None
    if shapes != {name: one.shape for name, one in about.tensors.items()} or about.adds > len(ledger.edits):
        raise InputError(
            f"The files of the delta {folder} do not belong together.",
            remedy="copy the delta again, or export it again",
        )
    return found


def _check_written(folder: Path, about: DeltaAbout, decoder: Decoder, former: Mapping[ModulePlace, Delta]) -> None:
    """Check that the file gives the weights that it was written for, and takes them back.

    Raises:
        FactsmithError: it does not; names the module.
    """
    written = DeltaFile(folder, about, Ledger(base="", weights=""))
    for place, delta in written.changes.items():
        its, weight = about.tensors[named_place(place)], weight_at(decoder, place)
        old = former[place].added_to(weight) if place in former else weight
        new = put_back(delta.added_to(old), written.entries(place, "to"))
        back = put_back(negated(delta).added_to(new), written.entries(place, "back"))
        wrong = checksum(as_stored(decoder, place, new)) != its.after
        if wrong or (about.keeps != "nothing" and checksum(as_stored(decoder, place, back)) != its.before):
            raise FactsmithError(f"{folder / TENSORS} does not give the weight {named_place(place)} that it should.")


def _difference(former: Delta | None, new: Delta | None) -> Delta:
    if former is None:
        assert new is not None
        return new
    return negated(former) if new is None else sum_of(new, negated(former))


def _stored(name: str, entries: Kept | None) -> dict[str, Tensor]:
    if entries is None:
        return {}
    return {f"{name}.values": entries.values} | ({} if entries.index is None else {f"{name}.index": entries.index})


def _shape(delta: Delta) -> tuple[int, ...]:
    if isinstance(delta, LowRankDelta):
        return len(delta.left), len(delta.right)
    return tuple(delta.dense().shape)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
