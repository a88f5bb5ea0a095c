"""Flow ``sweep``: many runs that differ in a few settings. Stages that they share run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from prefect import Flow, flow

from factsmith.artifacts.errors import InputError
from factsmith.flows.html.pages import log_sweep_report
from factsmith.flows.reporting.page import name_flow_run, show_tables
from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.sweeps.results import log_sweep, sweep_tables
from factsmith.flows.sweeps.cells import Sweep, open_sweep
from factsmith.flows.sweeps.engines import run_cells
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.pipeline.page import ProgressArtifacts
from factsmith.tasks.pipeline.progress import progress, published_by
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.home import open_store

__all__ = ["cells_flow", "run_sweep", "sweep"]


@flow(name="sweep")
def sweep(arguments: list[str], jobs: int = 1, memory_mb: int | None = None) -> SweepReport:
    """Run every cell of a grid of settings.

    Args:
        arguments: choices and settings. Those with several values, separated by commas, are the axes.
        jobs: most cells to run at once, each in a process of its own.
        memory_mb: memory for all cells that run at once, in MiB.
    """
    return run_sweep(open_sweep(arguments, jobs=jobs, memory_mb=memory_mb))


def cells_flow(opened: Sweep) -> Flow[[], SweepReport]:
    """The flow that runs the cells of a sweep whose input has been checked."""
    return Flow(lambda: _report(opened), name="cells")


def run_sweep(opened: Sweep) -> SweepReport:
    """Run a sweep whose input has been checked already."""
    return cells_flow(opened)()


def _report(opened: Sweep) -> SweepReport:
    """Run the cells of a sweep. Cells that need the most tokens run first, because these include what others need.

    A cell that fails is reported, and the others still run. A sweep that was interrupted continues where it stopped.

    Raises:
        InputError: every cell failed.
    """
    store = open_store()
    first = opened.cells[0][1]
    workspace = Workspace(store, first.runtime)
    name = f"sweep · {opened.grid.name} · {len(opened.cells)} cells"
    common = _common([settings.model_dump(mode="json") for _, settings in opened.cells])
    logged = workspace.logged(name, flow="sweep", settings=common, experiment=first.tracking.experiment)
    with store.in_use(), logged:
        name_flow_run(workspace.tracker.name)
        reports = _run_cells(opened, workspace)
        if all(report.error for report in reports):
            raise InputError(f"All {len(reports)} cells failed.", got=reports[0].error)
        families = load_families([name for _, one in opened.cells for name in one.dataset.metrics])
        known = {name for cell in reports for name in cell.intervals}
        names = dict.fromkeys(name for family in families for name in family.metrics)
        means = ((one.mean[0], list(one.mean[1])) for one in families if one.mean and one.mean[0] in known)
        report = SweepReport(
            run_id=workspace.flow_run,
            mlflow_run_id=workspace.tracker.run_id,
            name=opened.grid.name,
            axes=[list(axis) for axis in opened.grid.axes],
            metrics=[name for name in names if name in known],
            mean=next(means, None),
            cells=reports,
        )
        log_sweep(workspace.tracker, report)
        show_tables(opened.grid.name, sweep_tables(report))
        log_sweep_report(workspace, report, opened.arguments, first, common)
    return report


def _run_cells(opened: Sweep, workspace: Workspace) -> list[CellReport]:
    """The reports of all cells, in the order of the axes."""
    reports = {
        place: CellReport(place=dict(opened.cells[place][0].place), error=error)
        for place, error in opened.refused.items()
    }
    with published_by(ProgressArtifacts()), progress("cells", len(opened.cells)) as advance:
        advance(len(reports))
        with closing(run_cells(opened, workspace)) as ended:
            for place, report in ended:
                reports[place] = report
                advance(1)
    return [reports[place] for place in sorted(reports)]


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The nested settings that all of ``settings`` have in common."""
    first = settings[0]
    common: dict[str, Any] = {}
    for key, value in first.items():
        others = [one.get(key) for one in settings]
        if isinstance(value, Mapping) and all(isinstance(other, Mapping) for other in others):
            common[key] = _common([other for other in others if isinstance(other, Mapping)])
        elif all(other == value for other in others):
            common[key] = value
    return common
