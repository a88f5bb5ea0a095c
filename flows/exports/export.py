"""Flow ``export``: write an edit of an earlier run in a form that other programs can load."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from factsmith.artifacts.formats import load_json
from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.export_scores import past_scores
from factsmith.flows.exports.choice import EXPORTED, choose, chosen_form, find_source
from factsmith.flows.hand_over import Target, hand_over
from factsmith.flows.reporting.page import open_page
from factsmith.flows.reporting.reports import ExportReport
from factsmith.tasks.deltas.file import Keeps
from factsmith.tasks.edit.stage import REQUESTS
from factsmith.tasks.export.form import CHECKPOINT
from factsmith.tasks.export.hub import Push
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.ledger.entries import ledger_of
from factsmith.tasks.ledger.runs_stage import keep_ledgers, run_ledgers
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.tracking.runs import EDITS

__all__ = ["export"]


@flow(name="export")
def export(
    settings: RunSettings,
    name: str,
    out: Path,
    to: str = CHECKPOINT,
    batch: int | None = None,
    keep: Keeps | None = None,
    rank: int | None = None,
    push: str | None = None,
    public: bool = False,
) -> ExportReport:
    """Export an edit of an earlier run.

    Args:
        settings: the settings of that run.
        name: the run, or the address of the edit.
        out: folder to write, new or empty.
        to: name of the form.
        batch: which of several edits. See ``chosen_edit``.
        keep: what a delta keeps of the weights before it.
        rank: the rank to which changes are truncated; ``None`` to export them as they are.
        push: ``owner/name`` of the repository on the hub that gets the folder; ``None`` for none.
        public: whether a new repository is one that everyone sees.
    """
    source, where = find_source(home(), name), Push(push, public) if push else None
    target = Target(out, chosen_form(to, keep), rank, where)
    truncated = rank is not None
    given = {"out": out, "form": target.form, "truncated": truncated, "past": source.run}
    with open_page(settings, "export", dataset=truncated, **given) as run:
        run.workspace.tracker.document(source.run.edits, EDITS)
        run.workspace.tracker.document({"run": source.run.id}, EXPORTED)
        ledgers = run_ledgers(source.run, run.workspace.store)
        keep_ledgers(run.workspace.tracker, ledgers)
        chosen = choose(run, source, batch)
        scores = {}
        if chosen.is_whole or not run.settings.method.in_sequence:
            requests = [EditRequest(**fact) for fact in load_json(chosen.edit.path / REQUESTS)]
            facts = {(one.prompt, one.target_new) for one in requests}
            scores = past_scores(source.run, run.families, facts, None if chosen.is_whole else chosen.number - 1)
        return hand_over(
            run,
            chosen.edit,
            target,
            origin=source.run.id,
            scores=scores,
            ledger=ledger_of(ledgers, chosen.edit.place, chosen.edit.key.get("batches")),
            batches=chosen.batches(run.batches) if truncated else None,
            asks=source.run.flow == "edit" and "metrics" not in scores,
        )
