"""Flow ``sweep``: many runs that differ in a few settings. Stages that they share run once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event, Semaphore
from typing import Any, TypeAlias

from prefect import Flow, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.artifacts.store import Store
from factsmith.flows.cells import RunPool, Sweep, open_sweep
from factsmith.flows.configuration.grid import Cell
from factsmith.flows.html.pages import log_sweep_report
from factsmith.flows.precompute import Prepared
from factsmith.flows.reporting.page import name_flow_run, show_tables
from factsmith.flows.reporting.reports import Report
from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.sweeps.results import log_sweep, sweep_tables
from factsmith.flows.run import run_part
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.pipeline.page import ProgressArtifacts
from factsmith.tasks.pipeline.progress import progress, published_by, stopped_by
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings

__all__ = ["cells_flow", "run_sweep", "sweep"]

logger = logging.getLogger(__name__)

_Future: TypeAlias = Future[CellReport] | PrefectFuture[CellReport]

_LONGEST_WAIT = 0.5
"""Longest single wait for a cell, in seconds."""


@flow(name="sweep")
def sweep(arguments: list[str], jobs: int = 1, memory_mb: int | None = None) -> SweepReport:
    """Run every cell of a grid of settings.

    Args:
        arguments: choices and settings. Those with several values, separated by commas, are the axes.
        jobs: most cells to run at once.
        memory_mb: memory for all cells that run at once, in MiB.
    """
    return run_sweep(open_sweep(arguments, jobs=jobs, memory_mb=memory_mb))


def cells_flow(opened: Sweep) -> Flow[[], SweepReport]:
    """The flow that runs the cells of a sweep whose input has been checked."""
    runner: Any = ThreadPoolTaskRunner(max_workers=opened.jobs)
    return Flow(lambda: _report(opened), name="cells", task_runner=runner)


def run_sweep(opened: Sweep) -> SweepReport:
    """Run a sweep whose input has been checked already."""
    return cells_flow(opened)()


def _report(opened: Sweep) -> SweepReport:
    """Run the cells of a sweep. Cells that need the most tokens run first, because these include what others need.

    A cell that fails is reported, and the others still run. A sweep that was interrupted continues where it stopped.

    Raises:
        InputError: every cell failed.
    """
    store = Store(home())
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
    pool, parent = RunPool(workspace.store, apart=opened.jobs > 1), workspace.tracker.run_id
    reports = {
        place: CellReport(place=dict(opened.cells[place][0].place), error=error)
        for place, error in opened.refused.items()
    }
    stopping = Event()
    with published_by(ProgressArtifacts()), progress("cells", len(opened.cells)) as advance:
        advance(len(reports))

        def run_cell(place: int) -> CellReport:
            cell, settings = opened.cells[place]
            with stopped_by(stopping), pool.borrow(settings) as run:
                report = _run_cell(run, cell, parent)
            advance(1)
            return report

        waiting = [place for place in range(len(opened.cells)) if place not in reports]
        waiting.sort(key=lambda place: _most_tokens_first(opened.cells[place][1]))
        with _runners(opened, workspace, run_cell) as (run, submit):
            if opened.jobs == 1:
                reports |= {place: run(place) for place in waiting}
            else:
                try:
                    futures = {place: submit(place) for place in waiting}
                    _wait(futures.values())
                    reports |= {place: future.result() for place, future in futures.items()}
                except BaseException:  # A user who stops the sweep does not want to wait for its cells.
                    stopping.set()
                    raise
    return [reports[place] for place in sorted(reports)]


@contextmanager
def _runners(
    opened: Sweep, workspace: Workspace, run_cell: Callable[[int], CellReport]
) -> Iterator[tuple[Callable[[int], CellReport], Callable[[int], _Future]]]:
    """How to run a cell now, and how to have it run by another thread: as a task of Prefect, or without Prefect."""
    if workspace.flow_run is not None:
        name = partial(_cell_name, opened)
        cell: Any = task(name="cell", task_run_name=name, persist_result=False, cache_policy=NO_CACHE)(run_cell)
        yield cell, cell.submit
        return
    executor = ThreadPoolExecutor(opened.jobs)
    try:
        yield run_cell, lambda place: executor.submit(run_cell, place)
    finally:
        executor.shutdown(cancel_futures=True)


def _cell_name(opened: Sweep) -> str:
    """The name of the cell whose task is about to run."""
    from prefect.runtime import task_run

    place: int = task_run.parameters["place"]
    return opened.cells[place][0].name


def _wait(futures: Collection[_Future]) -> None:
    """Wait until all futures have ended. Each wait is short, because a long one may miss a Ctrl-C just as it starts."""
    ended = Semaphore(0)
    for future in futures:
        future.add_done_callback(lambda _: ended.release())
    for _ in futures:
        while not ended.acquire(timeout=_LONGEST_WAIT):
            pass


def _run_cell(run: Run, cell: Cell, parent: str) -> CellReport:
    started = time.perf_counter()
    error, found = None, {}
    try:
        found = _scored(*run_part(run, cell.name, flow="cell", parent=parent))
    except FactsmithError as failure:
        error = str(failure)
    except Exception as failure:  # A bug of ours must not stop the other cells.
        logger.exception("Cell %s", cell.name)
        error = f"{type(failure).__name__}: {failure}"
    return CellReport(
        place=dict(cell.place),
        error=error,
        mlflow_run_id=run.workspace.tracker.run_id if run.workspace.begun else None,
        stages=run.workspace.reports,
        seconds=round(time.perf_counter() - started, 3),
        **found,
    )


def _scored(report: Report, prepared: Prepared) -> dict[str, Any]:
    names = (
        "facts", "dynamic_multiplier", "metrics", "trajectory", "drift", "abilities", "lm_eval", "intervals",
        "intervals_over", "seconds_an_edit", "inference",
    )  # fmt: skip
    return {"tokens": prepared.tokens, **{name: getattr(report, name) for name in names}}


def _most_tokens_first(settings: Settings) -> tuple[str, float, float]:
    """A sort key: by model, then the most tokens first, because these include what cells with fewer need."""
    return settings.model.path, -(settings.corpus.tokens or 0), -settings.corpus.multipliers[-1]


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
