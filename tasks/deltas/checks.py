"""Which deltas go together, in which order, and to which weights they apply.

A delta applies to the state of the weights that it was made for. A stack is a chain: each delta was made on what the
one before it leaves. Deltas that were all made on the same weights are *independent*: each was computed as if the
others were not there. Their sum is a model that no method has made, so it has to be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.deltas.file import DeltaFile
from factsmith.tasks.deltas.weights import weight_at
from factsmith.tasks.edit.edit import named_place
from factsmith.tasks.ledger.ledger import Ledger

__all__ = ["check_applies", "check_modules", "check_stack", "check_undoes"]


def check_stack(deltas: Sequence[DeltaFile], *, independent: bool) -> None:
    """Check that deltas go together, whatever the model.

    Args:
        deltas: the deltas, in the order in which they are applied.
        independent: whether they may all be made on the same weights.

    Raises:
        InputError: two are the same, the order is wrong, or they do not follow each other.
    """
    for place, one in enumerate(deltas):
        for other in deltas[:place]:
            if (one.about.before, one.about.after) == (other.about.before, other.about.after):
                raise InputError(
                    "The same delta is given twice.", got=f"{other.folder} and {one.folder}", remedy="leave one out"
                )
    befores, afters = [one.about.before for one in deltas], [one.about.after for one in deltas]
    if independent:
        for place, one in enumerate(deltas):
            for other in deltas[:place]:
                if _facts(one) == _facts(other):
                    raise InputError(
                        f"{other.folder} and {one.folder} write the same facts, and together would write them twice.",
                        expected="one delta for each edit, whole or truncated",
                        remedy="leave one out",
                    )
        for one in deltas:
            if one.about.removes and len(deltas) > 1:
                raise InputError(
                    f"{one.folder} removes facts of an edit, and cannot be added to other deltas.",
                    expected="deltas that add facts",
                    remedy="apply it alone",
                )
        return
    if len(deltas) > 1 and len(set(befores)) == 1:
        raise InputError(
            f"{deltas[1].folder} was not made on what {deltas[0].folder} leaves: both were made on the same weights.",
            got=f"{len(deltas)} independent deltas of {deltas[0].about.base}",
            expected="deltas each of which was made on a model with those before it",
            remedy="--independent adds them up, although none was made to go with the others; or edit the model that "
            "has the first one",
        )
    for place, one in enumerate(deltas[1:], start=1):
        if one.about.before != afters[place - 1]:
            ordered = _in_order(deltas)
            raise InputError(
                f"{one.folder} does not follow {deltas[place - 1].folder}.",
                got=f"a delta for weights {one.about.before[:12]}, after one that leaves {afters[place - 1][:12]}",
                expected="deltas in the order in which they were made, without gaps",
                remedy=f"give them in this order: {' '.join(str(delta.folder) for delta in ordered)}"
                if ordered
                else "give the delta between them, or edit the model again that has the first one",
            )


def check_applies(
    deltas: Sequence[DeltaFile], state: str, ledger: Ledger | None, name: str, *, independent: bool
) -> None:
    """Check that a stack applies to a model with these weights.

    Args:
        deltas: the deltas, which ``check_stack`` has checked.
        state: state of the model's weights.
        ledger: the model's ledger, if it has one.
        name: what a message calls the model.
        independent: whether all of them are added to these weights.

    Raises:
        InputError: the model has one of them already, or they were made for other weights.
    """
    edits = {edit.edit for edit in ledger.edits} if ledger else set()
    for one in deltas if independent else deltas[:1]:
        if one.about.before == state:
            continue
        if one.about.after == state or edits & {edit.edit for edit in one.added}:
            raise InputError(
                f"{name} has the delta {one.folder} already.",
                expected=f"weights {one.about.before[:12]}, that it was made on",
                remedy="leave it out, or give the model that it was made on",
            )
        raise InputError(
            f"The delta {one.folder} was not made for the weights of {name}.",
            got=f"weights {state[:12]} in {one.about.dtype}" + (f", edited {len(edits)} times" if edits else ""),
            expected=f"weights {one.about.before[:12]}: {one.about.base}, fingerprint {one.about.weights[:12]}"
            + (f", with the edits of {_named(one.former_ledger)}" if one.former_ledger.edits else ""),
            remedy="give the model that it was made on, or first apply the deltas that lead there",
        )


def check_undoes(
    deltas: Sequence[DeltaFile], state: str, ledger: Ledger | None, name: str, *, independent: bool
) -> None:
    """Check that a stack can be taken back from a model. The arguments are those of ``check_applies``.

    Raises:
        InputError: the model does not have it, or has other deltas on top of it.
    """
    top = deltas[-1]
    if top.about.after == state:
        return
    edits = [edit.edit for edit in ledger.edits] if ledger else []
    mine = [edit.edit for delta in deltas for edit in delta.added]
    if not mine or not set(mine) <= set(edits):
        raise InputError(
            f"{name} does not have the delta {top.folder}.",
            got=f"weights {state[:12]}",
            expected=f"weights {top.about.after[:12]}, which it makes",
            remedy="give the model that it was applied to",
        )
    if independent:
        return
    above = len(edits) - 1 - edits.index(mine[-1])
    raise InputError(
        f"{name} has other edits on top of the delta {top.folder}."
        if above
        else f"{name} has the delta {top.folder}, but not the weights that it makes.",
        got=f"{above} later edit{'s' if above > 1 else ''}" if above else f"weights {state[:12]}",
        expected="all deltas from this one up, in the order in which they were applied",
        remedy="give the later ones too, and apply again those that are to stay; --independent subtracts this one "
        "alone, to rounding, whatever was made on top of it",
    )


def check_modules(deltas: Sequence[DeltaFile], decoder: Decoder, name: str) -> None:
    """Check that a model has the modules that deltas change.

    Raises:
        InputError: it has not, or they have another shape.
    """
    for one in deltas:
        for place in one.places:
            wanted = one.about.tensors[named_place(place)].shape
            try:
                shape = tuple(weight_at(decoder, place).shape)
            except (AttributeError, IndexError, TypeError):
                shape = None
            if shape != wanted:
                raise InputError(
                    f"The delta {one.folder} was not made for the model {name}.",
                    got=f"{named_place(place)}: {'no such weight' if shape is None else f'shape {shape}'}",
                    expected=f"shape {wanted}, as in {one.about.base}",
                )


def _facts(delta: DeltaFile) -> set[tuple[str, str]]:
    return {(fact.prompt, fact.target_new) for edit in delta.added for fact in edit.facts}


def _in_order(deltas: Sequence[DeltaFile]) -> list[DeltaFile]:
    """The deltas in the order in which they follow each other; empty if they do not."""
    by_before = {one.about.before: one for one in deltas}
    afters = {one.about.after for one in deltas}
    starts = [one for one in deltas if one.about.before not in afters]
    found = starts[:1]
    while found and len(found) < len(deltas) and (following := by_before.get(found[-1].about.after)):
        found.append(following)
    return found if len(found) == len(deltas) else []


def _named(ledger: Ledger) -> str:
    return ", ".join(edit.run[:8] if edit.run else edit.edit.rpartition("/")[2][:12] for edit in ledger.edits)
