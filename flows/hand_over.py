"""From an edit in the store to files of a user's: truncation on request, the scores that this costs, the export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.formats import load_table
from factsmith.flows.export_scores import answer_scores, record_scores
from factsmith.flows.reporting.reports import ExportReport
from factsmith.tasks.evaluation.answers_stage import answers
from factsmith.tasks.evaluation.stage import evaluation
from factsmith.tasks.export.form import Form
from factsmith.tasks.export.hub import Push
from factsmith.tasks.export.push_stage import push
from factsmith.tasks.export.stage import export
from factsmith.tasks.export.truncation_stage import truncation
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.ledger.ledger import Ledger
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import RECORDS

__all__ = ["Target", "hand_over"]


@dataclass(frozen=True)
class Target:
    """What is to be written.

    Attributes:
        out: the folder, new or empty.
        form: the form.
        rank: the rank to which changes are truncated; ``None`` to export them as they are.
        push: where the folder goes on the hub; ``None`` to leave it here.
    """

    out: Path
    form: Form
    rank: int | None = None
    push: Push | None = None


def hand_over(
    run: Run,
    edit: Artifact,
    target: Target,
    *,
    origin: str,
    scores: Mapping[str, Any],
    ledger: Ledger,
    batches: FactBatches | None = None,
    asks: bool = False,
) -> ExportReport:
    """Export an edit.

    Args:
        run: the run that exports it.
        edit: the edit.
        target: what is to be written.
        origin: id of the run that made or scored the edit.
        scores: its scores, as ``scores`` gives them; empty if it has none.
        ledger: the ledger of the edited model.
        batches: the facts that it writes, which a truncated edit is scored on.
        asks: whether these scores are answers, and not metrics.
    """
    workspace, about, changes, compared = run.workspace, {**run.about, "run": origin}, [], {}
    if target.rank is not None:
        assert batches is not None
        scores = scores or _scored(run, edit, batches, asks=asks)
        cut = truncation(workspace, run.model, edit, target.rank)
        truncated = _scored(run, cut.edit, batches, asks=asks)
        compared = _side_by_side(scores, truncated)
        about["truncation"] = {
            "rank": target.rank,
            "exact": edit.address,
            "changes": [asdict(one) for one in cut.changes],
        }
        edit, scores, changes = cut.edit, truncated, cut.changes
        ledger = _with_scores(ledger, edit, scores)
    written = export(workspace, run.model, edit, target.form, target.out, {**about, "scores": dict(scores)}, ledger)
    pushed = None if target.push is None else push(workspace, edit.address, written.out, target.push)
    return ExportReport(
        run=origin,
        edit=edit.address,
        form=target.form.name,
        out=written.out,
        bytes=written.size,
        rank=written.about.get("rank"),
        truncated=changes,
        scores=compared,
        pushed=pushed,
    )


def _scored(run: Run, edit: Artifact, batches: FactBatches, *, asks: bool) -> dict[str, Any]:
    if asks:
        return answer_scores([asdict(one) for one in answers(run.workspace, run.model, batches, [edit])])
    found = evaluation(run.workspace, run.model, run.families, batches, [edit])
    return record_scores(load_table(found.artifact.path / RECORDS), run.families)


def _side_by_side(exact: Mapping[str, Any], truncated: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Each score before the edit, after it, and after the truncated edit."""
    if "metrics" not in exact:
        before, held = exact["facts_held_before"], exact["facts_held"]
        return {"facts_held": {"before": before, "exact": held, "truncated": truncated["facts_held"]}}
    return {
        name: {"before": one["before"], "exact": one["after"], "truncated": truncated["metrics"][name]["after"]}
        for name, one in exact["metrics"].items()
        if name in truncated["metrics"]
    }


def _with_scores(ledger: Ledger, edit: Artifact, scores: Mapping[str, Any]) -> Ledger:
    """The ledger with another edit in place of the last one, which has the same facts."""
    metrics = {name: one["after"] for name, one in scores.get("metrics", {}).items()}
    counts = {name: scores[name] for name in ("facts", "facts_held") if name in scores}
    last = ledger.edits[-1]
    facts = tuple(one.model_copy(update={"holds": None}) for one in last.facts)
    changed = last.model_copy(update={"edit": edit.place, "scores": metrics | counts, "facts": facts})
    return ledger.model_copy(update={"edits": (*ledger.edits[:-1], changed)})
