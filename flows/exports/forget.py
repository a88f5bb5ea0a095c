"""Flow ``forget``: the delta that takes one fact back from an edited model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.edit import write_batches
from factsmith.flows.precompute import prepare
from factsmith.flows.reporting.page import open_page
from factsmith.tasks.deltas.file import Keeps
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.export.forms.delta import DeltaForm
from factsmith.tasks.export.stage import write_folder
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.record import Record
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit, LedgerFact
from factsmith.tasks.ledger.runs_stage import run_ledgers
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.planning.ledgers import base_ledger, ledgers_of, log_edits
from factsmith.tasks.tracking.runs import find_run

__all__ = ["ForgetReport", "find_record", "forget", "written_again"]


class ForgetReport(BaseModel):
    """The outcome of ``forget``.

    Attributes:
        mlflow_run_id: id of the run in MLflow.
        fact: the fact that the delta removes.
        left: number of facts that stay in the edit.
        written_again: number of facts that had to be solved or trained again.
        edit: where the store keeps the edit without the fact; ``None`` if no fact is left.
        out: the folder with the delta.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlflow_run_id: str
    fact: LedgerFact
    left: int
    written_again: int
    edit: str | None
    out: Path


@flow(name="forget")
def forget(
    settings: RunSettings, run: str, fact: Mapping[str, object], out: Path, keeps: Keeps = "entries"
) -> ForgetReport:
    """Make the edit of an earlier run again without one fact, and write the delta from the one to the other.

    A batch is solved again without the fact. A sequence is written again from the fact's batch on. Everything else is
    in the store. The edit without the fact is that of a run without it, and the delta gives its weights to the bit.

    Args:
        settings: the settings of the earlier run.
        run: its id in MLflow.
        fact: the fact, as the ledger of the run has it.
        out: folder to write, new or empty.
        keeps: what the delta keeps of the weights with the fact.
    """
    wanted = LedgerFact.model_validate(fact)
    with open_page(settings, "forget") as current:
        store, past = current.workspace.store, find_run(home(), run)
        entry = _entry(run_ledgers(past, store), wanted)
        record, batches, place = find_record(current.batches, entry, wanted)
        prepared = prepare(current)
        before = write_batches(current, prepared, batches)[-1]
        if before.place != entry.edit:
            raise InputError(
                f"The settings of run {past.id} do not give its edit any more.",
                got=before.address,
                expected=entry.edit,
                remedy="set dataset.path and model.path to what they were then",
            )
        less = batches.without(record)
        edits = write_batches(current, prepared, less) if less.batches else []
        log_edits(current, less, edits)
        form = DeltaForm(keeps, read_edit(before), (entry,))
        ledger = ledgers_of(current, less, edits)[-1] if edits else base_ledger(current)
        about = {**current.about, "run": current.workspace.tracker.run_id, "removes": wanted.model_dump(mode="json")}
        after = read_edit(edits[-1] if edits else None)
        write_folder(current.workspace, current.model, after, form, out, about, ledger)
        return ForgetReport(
            mlflow_run_id=current.workspace.tracker.run_id,
            fact=wanted,
            left=len(less.requests),
            written_again=written_again(less, place),
            edit=edits[-1].place if edits else None,
            out=out,
        )


def find_record(batches: FactBatches, entry: LedgerEdit, fact: LedgerFact) -> tuple[Record, FactBatches, int]:
    """The record of a fact, the batches of the edit that holds it, and the place of its batch among them.

    Args:
        batches: the facts of the run that made the edit, and any that an earlier ``forget`` has left out.
        entry: the entry of the edit in the ledger.
        fact: one of its facts.

    Raises:
        InputError: the dataset does not have it.
    """
    written = {_key(one) for one in entry.facts}
    kept = [[record for record in batch if _key_of(record) in written] for batch in batches.batches]
    kept = [batch for batch in kept if batch]
    for place, batch in enumerate(kept):
        for record in batch:
            if _key_of(record) == _key(fact):
                if batches.in_sequence:
                    return record, FactBatches(kept, [len(kept)]), place
                return record, FactBatches([batch]), 0
    raise InputError(
        f"The dataset does not have the fact {fact.prompt!r}: {fact.target_new!r}.",
        expected="the facts of the run that wrote it",
        remedy="set dataset.path to the file that was used then",
    )


def written_again(less: FactBatches, place: int) -> int:
    """How many facts are solved or trained again once a fact of the batch at ``place`` is left out.

    Args:
        less: the batches without the fact.
        place: as ``find_record`` gives it.
    """
    return sum(map(len, less.batches[place:]))


def _key(fact: LedgerFact) -> tuple[int, str, str, str]:
    return fact.case_id, fact.subject, fact.template, fact.target_new


def _key_of(record: Record) -> tuple[int, str, str, str]:
    request = record.request
    return request.case_id, request.subject, request.template, request.target_new


def _entry(ledgers: Sequence[Ledger], fact: LedgerFact) -> LedgerEdit:
    """The last entry of the ledger that has ``fact``, among those of a run."""
    return next(one.edits[-1] for one in ledgers if _key(fact) in map(_key, one.edits[-1].facts))
