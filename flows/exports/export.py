"""Flow ``export``: write an edit of an earlier run in a form that other programs can load."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict

from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.exports.choice import EXPORTED, chosen_edit, chosen_form, find_source
from factsmith.flows.reporting.page import open_page
from factsmith.tasks.deltas.file import Keeps
from factsmith.tasks.edit.stage import stored_edits
from factsmith.tasks.export.form import CHECKPOINT
from factsmith.tasks.export.stage import export as export_edit
from factsmith.tasks.ledger.entries import ledger_of
from factsmith.tasks.ledger.runs_stage import keep_ledgers, run_ledgers
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.tracking.runs import EDITS

__all__ = ["ExportReport", "export"]


class ExportReport(BaseModel):
    """The outcome of ``export``.

    Attributes:
        run: id of the run whose edit was exported.
        edit: the address of the edit.
        form: the name of the form.
        out: the folder that was written.
        bytes: size of its files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    edit: str
    form: str
    out: Path
    bytes: int


@flow(name="export")
def export(
    settings: RunSettings,
    name: str,
    out: Path,
    to: str = CHECKPOINT,
    batch: int | None = None,
    keep: Keeps | None = None,
) -> ExportReport:
    """Export an edit of an earlier run.

    Args:
        settings: the settings of that run.
        name: the run, or the address of the edit.
        out: folder to write, new or empty.
        to: name of the form.
        batch: which of several edits. See ``chosen_edit``.
        keep: what a delta keeps of the weights before it.
    """
    source, form = find_source(home(), name), chosen_form(to, keep)
    with open_page(settings, "export", dataset=False, out=out, form=form, past=source.run) as run:
        workspace, in_sequence = run.workspace, run.settings.method.in_sequence
        workspace.tracker.document(source.run.edits, EDITS)
        workspace.tracker.document({"run": source.run.id}, EXPORTED)
        ledgers = run_ledgers(source.run, workspace.store)
        keep_ledgers(workspace.tracker, ledgers)
        edits = stored_edits(workspace.store, source.run, run.model)
        edit = chosen_edit(source, edits, in_sequence=in_sequence, batch=batch)
        ledger = ledger_of(ledgers, edit.place, edit.key.get("batches"))
        about = {**run.about, "run": source.run.id, "scores": ledger.edits[-1].scores}
        written = export_edit(workspace, run.model, edit, form, out, about, ledger)
        return ExportReport(
            run=source.run.id, edit=written.edit, form=written.form, out=written.out, bytes=written.size
        )
