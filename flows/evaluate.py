"""Flow ``evaluate``: score a model before and after its facts were written."""

from __future__ import annotations

from prefect import flow

from factsmith.artifacts.store import Artifact
from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.edit import write
from factsmith.flows.precompute import finish, prepare
from factsmith.flows.reporting.curves import Curves
from factsmith.flows.reporting.figures import before_and_after
from factsmith.flows.reporting.reports import Report
from factsmith.flows.reporting.trajectory import log_course
from factsmith.tasks.edit.stage import past_edits
from factsmith.tasks.evaluation.stage import Scores, evaluation, prompt_table
from factsmith.tasks.evaluation.trajectory_stage import course
from factsmith.tasks.model.stage import ModelName, model
from factsmith.tasks.pipeline.paths import home
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.preflight import open_bench
from factsmith.tasks.tracking.runs import EDITS, RECORDS, SCORE, find_run

__all__ = ["evaluate", "score"]


def score(bench: Bench, model: ModelName, edits: list[Artifact], *, figure: bool = True) -> tuple[Scores, Curves]:
    """evaluation, and in sequence course, and what MLflow shows of them.

    Returns:
        Scores before and after; and how they went as edits added up, nothing unless in sequence.
    """
    scores = evaluation(bench, model, edits[-1:] if bench.in_sequence else edits)
    # MLflow's comparison starts with the metric that was logged first.
    by_phase = {"after": scores.after, "before": scores.before}
    bench.tracker.metrics(
        {f"{phase}/{name}": value for phase, metrics in by_phase.items() for name, value in metrics.items()}
    )
    means = [family.mean[0] for family in bench.families if family.mean]
    if means:
        bench.tracker.tags({SCORE: means[0]})
    for name in (RECORDS, *(prompt_table(family.name) for family in bench.families)):
        bench.tracker.file(scores.artifact.path / name)
    curves = log_course(bench.tracker, course(bench, model, edits), means) if bench.in_sequence else {}
    if figure:
        bench.tracker.figure(before_and_after(scores.before, scores.after), "before_after.png")
    return scores, curves


@flow(name="evaluate")
def evaluate(settings: RunSettings, run: str | None = None) -> Report:
    """Score the edit that the settings describe; whatever it needs and nobody has made yet is made first.

    Args:
        settings: of the run: choices, and what is to differ from them.
        run: id in MLflow of an earlier run of these settings, whose edits are scored as they are in the store.
    """
    past = find_run(home(), run) if run else None
    with open_bench(settings, "evaluate", run=past) as bench:
        if past is None:
            prepared = prepare(bench)
            return finish(bench, prepared, *score(bench, prepared.model, write(bench, prepared)))
        edits = past_edits(bench, past)
        bench.tracker.document(past.edits, EDITS)
        return Report.of(bench, *score(bench, model(bench), edits))
