"""Write a delta file, and check that it gives the weights that it was written for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from factsmith.artifacts.errors import FactsmithError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.deltas.exact import Kept, kept, negated
from factsmith.tasks.deltas.file import ABOUT, TENSORS, Changed, DeltaAbout, DeltaFile, Keeps, sha256_of
from factsmith.tasks.deltas.weights import as_stored, checksum, checksums, state_of, tensor_name, weight_at
from factsmith.tasks.edit.delta import Delta, LowRankDelta, overflow, tensors_of
from factsmith.tasks.edit.edit import ModuleEdit, ModulePlace, named_place
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit

__all__ = ["write_delta"]


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
        parts = {part: its[place] for part, its in (("former", former), ("new", new)) if place in its}
        edited = {part: delta.added_to(weight) for part, delta in parts.items()}
        if not all(one.isfinite().all() for one in edited.values()):
            raise overflow(weight.dtype, f"The edit makes weights of {ModuleEdit.described(place)} NaN or infinite.")
        entries: dict[str, Kept | None] = {}
        for part, delta in parts.items():
            how = keeps if part == "new" else "entries"  # Without them, the delta could not be applied to the bit.
            back = negated(delta).added_to(edited[part])
            entries[part] = None if how == "nothing" else kept(back, weight, whole=how == "tensors")
            tensors |= {**tensors_of({f"{part}.{where}": delta}), **_stored(f"{part}.{where}", entries[part])}
        for sums_of, part in ((before, "former"), (after, "new")):
            sums_of[name] = checksum(as_stored(decoder, place, edited.get(part, weight)))
        thin = [delta.rank for delta in parts.values() if isinstance(delta, LowRankDelta)]
        changed[where] = Changed(
            name=name,
            shape=(weight.shape[0], weight.shape[1]),
            rank=sum(thin) if len(thin) == len(parts) else None,
            before=before[name],
            after=after[name],
            kept=sum(one.values.numel() for one in entries.values() if one is not None),
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
        sha256=sha256_of(folder / TENSORS),
    )
    (folder / ABOUT).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _check_written(folder, about, decoder, former)
    return about


def _check_written(folder: Path, about: DeltaAbout, decoder: Decoder, former: Mapping[ModulePlace, Delta]) -> None:
    """Check that the file gives the weights that it was written for, and takes them back.

    Raises:
        FactsmithError: it does not; names the module.
    """
    written = DeltaFile(folder, about, Ledger(base="", weights=""))
    for place in written.places:
        its, weight = about.tensors[named_place(place)], weight_at(decoder, place)
        old = former[place].added_to(weight) if place in former else weight
        new = written.applied_to(place, old)
        wrong = checksum(as_stored(decoder, place, new)) != its.after
        if about.keeps != "nothing":
            wrong |= checksum(as_stored(decoder, place, written.undone_in(place, new))) != its.before
        if wrong:
            raise FactsmithError(f"{folder / TENSORS} does not give the weight {named_place(place)} that it should.")


def _stored(name: str, entries: Kept | None) -> dict[str, Tensor]:
    if entries is None:
        return {}
    return {f"{name}.values": entries.values} | ({} if entries.index is None else {f"{name}.index": entries.index})
