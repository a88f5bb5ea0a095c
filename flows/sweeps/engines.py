"""Where the cells of a sweep run: in this process one after the other, or at once in processes of their own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TypeAlias

import torch

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.grid import Cell
from factsmith.flows.reporting.sweeps.reports import CellReport
from factsmith.flows.sweeps.cell import Cells
from factsmith.flows.sweeps.cells import Sweep
from factsmith.flows.sweeps.order import Order
from factsmith.flows.sweeps.processes import Died, in_processes
from factsmith.tasks.pipeline.page import crash_tasks, flow_run_for_others
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.tracking.dead_runs import end_dead_runs

__all__ = ["run_cells"]

_Ended: TypeAlias = Generator[tuple[int, CellReport], None, None]


def run_cells(opened: Sweep, workspace: Workspace) -> _Ended:
    """Run the cells that can run. Yields the place and the report of each, in the order in which they end.

    Args:
        opened: the sweep.
        workspace: the workspace of the sweep's own run.
    """
    waiting = {place: settings for place, (_, settings) in enumerate(opened.cells) if place not in opened.refused}
    order = Order(waiting)
    engine = _here if opened.jobs == 1 else _in_processes
    return engine(opened, workspace, order)


def _here(opened: Sweep, workspace: Workspace, order: Order) -> _Ended:
    with _cells(workspace).here() as run:
        while (place := order()) is not None:
            yield place, run(opened.cells[place])


def _in_processes(opened: Sweep, workspace: Workspace, order: Order) -> _Ended:
    places: dict[int, int] = {}

    def choose(process: int) -> tuple[Cell, Settings] | None:
        if process in places:
            order.ended(places.pop(process))
        if (place := order(process)) is None:
            return None
        places[process] = place
        return opened.cells[place]

    threads = max(1, torch.get_num_threads() // opened.jobs)
    processes = in_processes(opened.jobs, _cells(workspace).elsewhere, choose, threads=threads)
    any_died = False
    with closing(processes) as ended:
        for process, outcome in ended:
            place = places[process]
            if isinstance(outcome, Died):
                any_died = True
                yield place, _died(opened.cells[place][0], outcome, workspace)
            else:
                yield place, outcome
    if any_died and workspace.flow_run is not None:
        crash_tasks(workspace.flow_run, "the process of this cell was killed; the same command continues it")


def _cells(workspace: Workspace) -> Cells:
    flow_run = None if workspace.flow_run is None else flow_run_for_others()
    return Cells(workspace.store.root, workspace.store.url, workspace.tracker.run_id, flow_run)


def _died(cell: Cell, how: Died, workspace: Workspace) -> CellReport:
    """The report of a cell whose process died. Its run is marked in MLflow."""
    error = InputError(
        "The process of this cell ended before the cell did.",
        got=str(how),
        remedy="a machine that runs out of memory kills processes: use fewer --jobs, or --memory-mb; "
        "the same command continues from here",
    )
    end_dead_runs(workspace.store.root, workspace.tracker.uri, workspace.tracker.client)
    return CellReport(place=dict(cell.place), error=str(error))
