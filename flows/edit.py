"""Flow ``edit``: write facts and, on request, export the edited model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from prefect import flow

from factsmith.artifacts.artifact import Artifact
from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.export_scores import answer_scores
from factsmith.flows.hand_over import Target, hand_over
from factsmith.flows.html.pages import log_run_report
from factsmith.flows.precompute import Prepared, finish, prepare
from factsmith.flows.reporting.page import open_page
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.edit.sequence_stage import edit_in_sequence
from factsmith.tasks.edit.stage import edit as edit_batches
from factsmith.tasks.editors.stage import write_facts
from factsmith.tasks.evaluation.answers_stage import answers
from factsmith.tasks.export.form import CHECKPOINT, load_form
from factsmith.tasks.export.hub import Push
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.stage import Contexts, contexts
from factsmith.tasks.ledger.entries import scored
from factsmith.tasks.model.stage import model as check_model
from factsmith.tasks.planning.ledgers import ledgers_of, log_edits
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation.principal_directions_stage import principal_directions
from factsmith.tasks.tracking.runs import ANSWERS
from factsmith.tasks.values.stage import values

__all__ = ["edit", "write", "write_batches"]


def write(run: Run, prepared: Prepared) -> list[Artifact]:
    """Write the facts of a run, and log its edits and their ledgers.

    Returns:
        One edit for each batch. In a sequence, one edit for each number of batches that is scored; the last one holds
        the changes of all batches.
    """
    edits = write_batches(run, prepared, run.batches)
    log_edits(run, run.batches, edits)
    return edits


def write_batches(run: Run, prepared: Prepared, batches: FactBatches) -> list[Artifact]:
    """Write facts: contexts -> values -> edit. In a sequence: contexts -> principal directions -> edit.

    A sequence optimises its value vectors in stage ``edit``, because they depend on the weights that earlier batches
    left. An editor needs neither value vectors nor directions.

    Args:
        run: the run.
        prepared: what was prepared for it.
        batches: the facts.

    Returns:
        As ``write``.
    """
    workspace, model, layers, method = run.workspace, run.model, run.layers, run.settings.method
    editor, factors = run.editor, prepared.factors
    if editor is not None:
        other = run.counterfactual
        if other is not None:
            check_model(workspace, other)
        templates = _contexts(run) if editor.uses_contexts else None
        edits = write_facts(workspace, model, layers, editor, method, batches, templates, other)
    elif factors is None:
        raise RuntimeError("a method that solves the equation needs factors")
    elif batches.in_sequence:
        templates, source, tokens = _contexts(run), prepared.statistics, prepared.tokens
        directions = principal_directions(workspace, layers, run.preservation.source, source, tokens)
        edits = edit_in_sequence(workspace, model, layers, method, batches, templates, factors, directions)
    else:
        templates = _contexts(run)
        vectors = values(workspace, model, layers[-1], method.value, templates, batches.requests)
        edits = edit_batches(workspace, model, layers, method, batches.batches, templates, vectors, factors)
    return edits


def _contexts(run: Run) -> Contexts:
    return contexts(run.workspace, run.model, run.settings.method, run.given_contexts, run.chat_contexts)


@flow(name="edit")
def edit(
    settings: RunSettings,
    out: Path | None = None,
    to: str = CHECKPOINT,
    rank: int | None = None,
    push: str | None = None,
    public: bool = False,
) -> Report:
    """Write facts into a model, and ask it for each of them.

    Args:
        settings: choices, and settings that differ from them.
        out: folder to write the edited model to.
        to: the form in which it is written.
        rank: the rank to which changes are truncated before; ``None`` to write them as they are.
        push: ``owner/name`` of the repository on the hub that gets the folder; ``None`` for none.
        public: whether a new repository is one that everyone sees.
    """
    form = load_form(to)
    with open_page(settings, "edit", out=out, form=form, truncated=rank is not None) as run:
        prepared = prepare(run)
        edits = write(run, prepared)
        found = answers(run.workspace, run.model, run.batches, edits[-1:] if run.batches.in_sequence else edits)
        rows = [asdict(one) for one in found]
        held = sum(one.holds for one in found)
        run.workspace.tracker.document(rows, ANSWERS)
        run.workspace.tracker.metrics({"facts": len(found), "facts_held": held})
        report = finish(run, prepared).model_copy(update={"answers": found})
        if out is not None:
            (ledger,) = ledgers_of(run, run.batches, edits)
            holds = {one.case_id: one.holds for one in found}
            last = scored(ledger.edits[-1], {"facts": len(found), "facts_held": held}, holds)
            written = hand_over(
                run,
                edits[-1],
                Target(out, form, rank, Push(push, public) if push else None),
                origin=run.workspace.tracker.run_id,
                scores=answer_scores(rows),
                ledger=ledger.model_copy(update={"edits": (*ledger.edits[:-1], last)}),
                batches=run.batches,
                asks=True,
            )
            report = report.model_copy(update={"export": written, "stages": run.workspace.reports})
        log_run_report(run, report, "edit", leverages=prepared.leverages)
        return report
