"""Apply delta files to a model, or take them back, and write the model to a folder as a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from factsmith.artifacts.errors import InputError
from factsmith.tasks.deltas.checks import check_applies, check_modules, check_undoes
from factsmith.tasks.deltas.file import DeltaFile
from factsmith.tasks.deltas.stack import Stacked, apply_stack, undo_stack
from factsmith.tasks.deltas.weights import checksums, state_of, stored_bytes
from factsmith.tasks.export.form import CHECKPOINT, load_form
from factsmith.tasks.export.stage import write_folder
from factsmith.tasks.ledger.ledger import Ledger, read_ledger
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["apply_deltas", "undo_deltas"]

_Sums: TypeAlias = dict[str, str]
_Advance: TypeAlias = Callable[[int], None]


def apply_deltas(
    workspace: Workspace, model: Model, deltas: Sequence[DeltaFile], out: Path, *, independent: bool
) -> Stacked:
    """Write a model with deltas to ``out``, which is new or empty.

    Args:
        workspace: the store, whose locks keep other commands from ``out``, and the runtime settings.
        model: the model, in the data type of the deltas.
        deltas: deltas that go together.
        out: the folder.
        independent: whether all of them were made on this model, and are added up.

    Raises:
        InputError: they do not apply to this model.
    """

    def work(sums: _Sums, ledger: Ledger | None, advance: _Advance) -> Stacked:
        check_applies(deltas, state_of(sums), ledger, model.name, independent=independent)
        return apply_stack(model.decoder, deltas, sums, ledger, independent=independent, advance=advance)

    return _restacked(workspace, model, deltas, out, work)


def undo_deltas(
    workspace: Workspace, model: Model, deltas: Sequence[DeltaFile], out: Path, *, independent: bool
) -> Stacked:
    """Write a model without deltas that it has to ``out``. The arguments are those of ``apply_deltas``.

    Raises:
        InputError: the model does not have them, or has others on top of them and they are not ``independent``.
    """

    def work(sums: _Sums, ledger: Ledger | None, advance: _Advance) -> Stacked:
        check_undoes(deltas, state_of(sums), ledger, model.name, independent=independent)
        return undo_stack(model.decoder, deltas, sums, ledger, advance=advance)

    return _restacked(workspace, model, deltas, out, work)


def _restacked(
    workspace: Workspace,
    model: Model,
    deltas: Sequence[DeltaFile],
    out: Path,
    work: Callable[[_Sums, Ledger | None, _Advance], Stacked],
) -> Stacked:
    decoder = model.decoder
    check_modules(deltas, decoder, model.name)
    with progress("checksums", stored_bytes(decoder)) as advance:
        sums = checksums(decoder, advance)
    ledger = _ledger_beside(model, state_of(sums))
    with progress("weights", sum(len(one.places) for one in deltas)) as advance:
        found = work(sums, ledger, advance)
    about = {"model": model.name, "deltas": [one.about.after for one in deltas]}
    write_folder(workspace, model, found, load_form(CHECKPOINT), out, about, found.ledger)
    return found


def _ledger_beside(model: Model, state: str) -> Ledger | None:
    """The ledger beside the weights of a model, if there is one.

    Raises:
        InputError: it is the ledger of other weights.
    """
    ledger = read_ledger(model.checkpoint.path)
    as_stored = model.dtype == model.checkpoint.own_dtype  # In another data type, weights are in another state.
    if ledger is not None and as_stored and ledger.state not in (None, state):
        raise InputError(
            f"The ledger of {model.checkpoint.path} is not that of its weights.",
            got=f"weights {state[:12]} in {model.dtype}",
            expected=f"weights {str(ledger.state)[:12]}",
            remedy="give the folder as it was written; remove ledger.json if something else has changed the weights",
        )
    return ledger
