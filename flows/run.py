"""Flow ``run``: precompute, edit, evaluate; on its own, or as a part of ``sweep`` and ``tune``."""

from __future__ import annotations

from prefect import flow

from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.edit import write
from factsmith.flows.evaluate import score
from factsmith.flows.html.pages import log_run_report
from factsmith.flows.precompute import Prepared, finish, prepare
from factsmith.flows.reporting.conditioning import log_choice
from factsmith.flows.reporting.page import open_page
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.pipeline.page import subflow
from factsmith.tasks.planning.run import Run

__all__ = ["run", "run_part"]


@flow(name="run")
def run(settings: RunSettings) -> Report:
    """Prepare a model, write facts into it, and score it before and after.

    Args:
        settings: choices, and settings that differ from them.
    """
    with open_page(settings, "run") as current:
        workspace = current.workspace
        prepared = subflow(workspace, "precompute", lambda: prepare(current))
        edits = subflow(workspace, "edit", lambda: write(current, prepared))
        scored = subflow(workspace, "evaluate", lambda: score(current, edits))
        report = finish(current, prepared, scored)
        log_run_report(current, report, "run", scored=scored.scores, leverages=prepared.leverages)
        return report


def run_part(part: Run, name: str, *, flow: str, parent: str) -> tuple[Report, Prepared]:
    """A run that is a part of a larger one: a cell of ``sweep`` or a trial of ``tune``.

    Args:
        part: the run.
        name: its name in MLflow.
        flow: the flow that it is logged as.
        parent: id of the MLflow run that it is a part of.
    """
    with part.logged(name, flow=flow, parent=parent):
        prepared = prepare(part)
        scored = score(part, write(part, prepared), figure=False)
        if prepared.leverages:
            log_choice(part, prepared.leverages, figure=False)
        report = Report.of(part, scored, tokens=prepared.tokens)
        log_run_report(part, report, "run", scored=scored.scores, leverages=prepared.leverages)
        return report, prepared
