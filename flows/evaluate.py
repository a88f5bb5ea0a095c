"""Flow ``evaluate``: score a model before and after its facts are written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace

from prefect import flow

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.edit import write
from factsmith.flows.html.pages import log_run_report
from factsmith.flows.precompute import finish, prepare
from factsmith.flows.reporting.curves import ALL_FACTS, KL, Curves
from factsmith.flows.reporting.drift import DriftMeasure, drift_metrics, drift_report
from factsmith.flows.reporting.figures import before_and_after
from factsmith.flows.reporting.page import open_page, show_abilities, show_scores
from factsmith.flows.reporting.reports import Report, Scored
from factsmith.flows.reporting.trajectory import log_trajectory
from factsmith.tasks.abilities.harness_stage import HarnessResult, harness
from factsmith.tasks.abilities.measures import Ability
from factsmith.tasks.abilities.stage import ANSWERS, abilities
from factsmith.tasks.edit.stage import past_edits
from factsmith.tasks.editors.inference import MEASURES, Inference
from factsmith.tasks.editors.inference_stage import inference
from factsmith.tasks.evaluation.held_out.drift_stage import drift
from factsmith.tasks.evaluation.stage import evaluation, prompt_table
from factsmith.tasks.evaluation.trajectory_stage import trajectory
from factsmith.tasks.ledger.runs_stage import keep_ledgers, run_ledgers
from factsmith.tasks.model.stage import model
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import EDITS, RECORDS, SCORE, find_run

__all__ = ["evaluate", "measure", "score"]

logger = logging.getLogger(__name__)

_DECIMALS = 2
"""Decimals of a score in MLflow, whose pages show every digit. ``records.parquet`` has them all."""


def score(run: Run, edits: Sequence[Artifact], *, figure: bool = True) -> Scored:
    """Score the edits: evaluation, for a sequence trajectory, drift, and abilities on request. Logs them to MLflow.

    Args:
        run: the run.
        edits: the edits that ``write`` returned.
        figure: whether to log a figure of the scores.
    """
    workspace, batches, families = run.workspace, run.batches, run.families
    final = edits[-1:] if batches.in_sequence else edits
    scores = evaluation(workspace, run.model, families, batches, final)
    # MLflow's comparison starts with the metric that was logged first.
    by_phase = {"after": scores.after, "before": scores.before}
    workspace.tracker.metrics(
        {
            f"{phase}/{name}": None if value is None else round(value, _DECIMALS)
            for phase, metrics in by_phase.items()
            for name, value in metrics.items()
        }
        | {"facts": len(batches.records)}
    )
    means = [family.mean[0] for family in families if family.mean]
    if means:
        workspace.tracker.tags({SCORE: means[0]})
    for name in (RECORDS, *(prompt_table(family.name) for family in families)):
        workspace.tracker.file(scores.artifact.path / name)
    curves: Curves = {}
    if batches.in_sequence:
        found = trajectory(workspace, run.model, run.corpus, run.budget, families, batches, edits)
        curves = log_trajectory(workspace.tracker, found, means)
    moved = _drift(run, edits, curves) if run.settings.measures_drift else []
    if figure:
        workspace.tracker.figure(before_and_after(scores.before, scores.after), "before_after.png")
    measured, along = measure(run, edits)
    cost = _inference(run, edits)
    return Scored(scores, curves | along, measured, moved, measure_with_lm_eval(run, edits), cost)


def _inference(run: Run, edits: Sequence[Artifact]) -> Inference | None:
    """What the last edit costs at inference, if it adds a memory. Logs it to MLflow."""
    if not run.adds_memory:
        return None
    requests = [record.request for record in run.batches.written[-1]]
    found = inference(run.workspace, run.model, edits[-1], requests)
    run.workspace.tracker.metrics({f"inference/{name}": getattr(found, name) for name in MEASURES})
    return found


def _drift(run: Run, edits: Sequence[Artifact], curves: Curves) -> list[DriftMeasure]:
    """The drift of the first edits of independent batches, or of the last edit of a sequence. Logs it to MLflow.

    The drift of all edits of a sequence becomes one of its ``curves``.
    """
    settings, batches, tracker = run.settings.drift, run.batches, run.workspace.tracker
    try:
        corpus = run.corpus
    except InputError as error:  # An earlier run is scored, whose corpus is not needed for anything else.
        logger.warning("drift is not measured: %s", error)
        return []
    measured = edits if batches.in_sequence else edits[: settings.edits]
    found = drift(run.workspace, run.model, corpus, run.budget, settings, measured)
    if batches.scored is not None:
        counts = [batches.counts[number - 1] for number in batches.scored]
        for one in found:
            if one.measure == "KL":
                curves[KL] = dict(zip(counts, one.by_edit, strict=True))
                tracker.curves({KL: curves[KL]})
        found = [replace(one, by_edit=one.by_edit[-1:]) for one in found]
    measures = drift_report(found)
    tracker.metrics(drift_metrics(measures))
    return measures


def measure(run: Run, edits: Sequence[Artifact]) -> tuple[list[Ability], Curves]:
    """Measure the general abilities that the settings ask for. Logs them to MLflow.

    Args:
        run: the run.
        edits: the edits that ``write`` returned.

    Returns:
        The abilities before and after the edit, and their curves along a sequence.
    """
    if run.abilities is None:
        return [], {}
    tracker = run.workspace.tracker
    found = abilities(run.workspace, run.model, run.abilities, *run.asked_edits(edits))
    by_phase = {f"after/{one.name}": one.after for one in found.found} | {
        f"before/{one.name}": one.before for one in found.found
    }
    tracker.metrics({name: round(value, _DECIMALS) for name, value in by_phase.items()})
    tracker.file(found.artifact.path / ANSWERS)
    curves = {ALL_FACTS.format(name): points for name, points in found.along.items()}
    tracker.curves(curves)
    return found.found, curves


def measure_with_lm_eval(run: Run, edits: Sequence[Artifact]) -> list[HarnessResult]:
    """Run the tasks of lm-eval that the settings ask for. Logs their results to MLflow.

    Args:
        run: the run.
        edits: the edits that ``write`` returned.
    """
    if not run.lm_eval:
        return []
    settings = run.settings.abilities.lm_eval
    found = harness(run.workspace, run.model, run.lm_eval, settings, run.harness_edits(edits))
    run.workspace.tracker.metrics({f"after/lm-eval {one.name}": one.after for one in found})
    run.workspace.tracker.metrics({f"before/lm-eval {one.name}": one.before for one in found})
    run.workspace.tracker.document([asdict(one) for one in found], "lm_eval.json")
    return found


@flow(name="evaluate")
def evaluate(settings: RunSettings, run: str | None = None) -> Report:
    """Score the edit that the settings describe. Artifacts that this needs and that do not exist yet are built first.

    Args:
        settings: choices, and settings that differ from them.
        run: MLflow id of an earlier run with these settings; its stored edits are scored.
    """
    past = find_run(home(), run) if run else None
    with open_page(settings, "evaluate", past=past) as current:
        if past is None:
            prepared = prepare(current)
            scored = score(current, write(current, prepared))
            report = finish(current, prepared, scored)
            log_run_report(current, report, "evaluate", scored=scored.scores, leverages=prepared.leverages)
            return report
        store, dataset = current.workspace.store, current.settings.dataset.name
        edits = past_edits(store, past, current.model, dataset, current.batches)
        current.workspace.tracker.document(past.edits, EDITS)
        keep_ledgers(current.workspace.tracker, run_ledgers(past, store))
        model(current.workspace, current.model)
        scored = score(current, edits)
        show_scores(current, scored.scores)
        show_abilities(current, scored.abilities, scored.lm_eval, scored.inference)
        report = Report.of(current, scored)
        log_run_report(current, report, "evaluate", scored=scored.scores, past=past)
        return report
