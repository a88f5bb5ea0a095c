"""Flow ``export``: write an edit of an earlier run in a form that other programs can load."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict

from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.exports.choice import EXPORTED, chosen_edit, find_source
from factsmith.flows.reporting.page import open_page
from factsmith.tasks.edit.stage import stored_edits
from factsmith.tasks.export.form import CHECKPOINT, load_form
from factsmith.tasks.export.stage import export as export_edit
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
def export(settings: RunSettings, name: str, out: Path, to: str = CHECKPOINT, batch: int | None = None) -> ExportReport:
    """Export an edit of an earlier run.

    Args:
        settings: the settings of that run.
        name: the run, or the address of the edit.
        out: folder to write, new or empty.
        to: name of the form.
        batch: which of several edits. See ``chosen_edit``.
    """
    source, form = find_source(home(), name), load_form(to)
    with open_page(settings, "export", dataset=False, out=out, form=form, past=source.run) as run:
        workspace, in_sequence = run.workspace, run.settings.method.in_sequence
        workspace.tracker.document(source.run.edits, EDITS)
        workspace.tracker.document({"run": source.run.id}, EXPORTED)
        edits = stored_edits(workspace.store, source.run, run.model)
        edit = chosen_edit(source, edits, in_sequence=in_sequence, batch=batch)
        written = export_edit(workspace, run.model, edit, form, out, {**run.about, "run": source.run.id})
        return ExportReport(
            run=source.run.id, edit=written.edit, form=written.form, out=written.out, bytes=written.size
        )
