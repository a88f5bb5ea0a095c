"""Which sections the report of a run and of a sweep have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from factsmith.flows.configuration.choices import GROUPS
from factsmith.flows.configuration.keys import setting_values
from factsmith.flows.configuration.origins import arguments_again, arguments_of
from factsmith.flows.html.blocks import Verbatim
from factsmith.flows.html.document import Document, render
from factsmith.flows.html.sections.abilities import abilities
from factsmith.flows.html.sections.cost import cost
from factsmith.flows.html.sections.covariance import covariance
from factsmith.flows.html.sections.drift import drift
from factsmith.flows.html.sections.environment import environment
from factsmith.flows.html.sections.facts import facts
from factsmith.flows.html.sections.inference import inference
from factsmith.flows.html.sections.lineage import lineage
from factsmith.flows.html.sections.scores import headlines, scores
from factsmith.flows.html.sections.settings import command, settings
from factsmith.flows.html.sections.sweep import cells, results, sweep_headlines
from factsmith.flows.html.sections.trajectory import trajectory
from factsmith.flows.reporting.reports import PrecomputeReport, Report
from factsmith.flows.reporting.sweeps.reports import SweepReport
from factsmith.tasks.covariance.leverage_stage import Leverages
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.planning.title import summary
from factsmith.tasks.tracking.runs import REPORT, PastRun

__all__ = ["log_run_report", "log_sweep_report"]


def log_run_report(
    run: Run,
    report: Report,
    flow: str,
    *,
    dataset: bool = True,
    scored: Scores | None = None,
    leverages: Leverages | None = None,
    past: PastRun | None = None,
) -> None:
    """Attach the report of a run to it, as its last file: what is in it has to be known.

    Args:
        run: the run.
        report: its outcome.
        flow: the command that repeats it.
        dataset: whether it reads facts.
        scored: its scores, if it was scored.
        leverages: the held-out leverages that led to the number of tokens, if it was searched for.
        past: the earlier run whose edits it scored, if it made none.
    """
    given, families = run.settings, run.families if dataset else []
    found = [
        scores(report, families) if report.metrics else None,
        trajectory(report.trajectory, families, report.abilities) if report.trajectory else None,
        abilities(report.abilities, report.lm_eval) if report.abilities or report.lm_eval else None,
        drift(report.drift) if report.drift else None,
        inference(report.inference) if report.inference else None,
        facts(run.batches, families, scored, report.answers) if dataset else None,
        covariance(
            report,
            run.model.key_width,
            layers=report.layers if isinstance(report, PrecomputeReport) else (),
            leverages=leverages,
        ),
        cost(report.stages),
        settings(given, _command(flow, given, past)),
        lineage(run.workspace.store, report.stages),
        environment(run.workspace),
    ]
    about = {
        "model": " ".join(dict.fromkeys([given.model.name, given.model.path])),
        "method": given.method.name,
        "layers": ", ".join(map(str, run.layers)),
        **({"dataset": given.dataset.name} if dataset else {}),
    }
    document = Document(
        title=summary(run, dataset=dataset),
        about=about | _moment(run.workspace),
        headlines=headlines(report, families),
        sections=[one for one in found if one is not None],
    )
    run.workspace.tracker.text(render(document), REPORT)


def log_sweep_report(
    workspace: Workspace, report: SweepReport, given: Sequence[str], first: Settings, common: Mapping[str, Any]
) -> None:
    """Attach the report of a sweep to its run.

    Args:
        workspace: the workspace of the sweep.
        report: its outcome.
        given: its arguments.
        first: the settings of its first cell.
        common: the settings that all cells share, nested.
    """
    names = {name for name, _ in setting_values(common)}
    chosen = {group: common[group]["name"] for group in GROUPS if "name" in common.get(group, {})}
    document = Document(
        title=f"Sweep of {len(report.cells):,} runs" + (f": {report.name}" if report.name != "sweep" else ""),
        about=chosen | _varied(report) | _moment(workspace),
        headlines=sweep_headlines(report),
        sections=[
            results(report),
            cells(report),
            settings(first, command("sweep", given), names),
            environment(workspace),
        ],
    )
    workspace.tracker.text(render(document), REPORT)


def _command(flow: str, given: Settings, past: PastRun | None) -> Verbatim | None:
    """The command that repeats the run; ``None`` if no arguments give its settings."""
    if past is not None:
        return command(flow, [past.id[:8], *arguments_again(past.content, given)])
    arguments = arguments_of(given)
    return None if arguments is None else command(flow, arguments)


def _varied(report: SweepReport) -> dict[str, str]:
    """The values of each axis, in the order in which they were given."""
    keys = [axis[0] for axis in report.axes]
    return {key: ", ".join(dict.fromkeys(cell.place[key] for cell in report.cells)) for key in keys}


def _moment(workspace: Workspace) -> dict[str, str]:
    return {"date": f"{datetime.now(UTC):%-d %B %Y, %H:%M} UTC", "run": workspace.tracker.run_id[:8]}
