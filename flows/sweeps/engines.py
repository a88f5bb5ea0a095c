"""Where the cells of a sweep run: in this process one after the other, or at once in others, here or on a cluster."""

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
from factsmith.flows.sweeps.on_ray import on_ray
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
    if opened.jobs == 1:
        return _here(opened, workspace, order)
    return _at_once(opened, workspace, order)


def _here(opened: Sweep, workspace: Workspace, order: Order) -> _Ended:
    with _cells(workspace).here() as run:
        while (place := order()) is not None:
            yield place, run(opened.cells[place])


def _at_once(opened: Sweep, workspace: Workspace, order: Order) -> _Ended:
    places: dict[int, int] = {}

    def choose(number: int) -> tuple[Cell, Settings] | None:
        if number in places:
            order.ended(places.pop(number))
        if (place := order(number)) is None:
            return None
        places[number] = place
        return opened.cells[place]

    cells, runtime = _cells(workspace), opened.cells[0][1].runtime
    ended: Generator[tuple[int, CellReport | Died | str], None, None]
    if opened.on_ray:
        mark = f"runs/{workspace.tracker.run_id}.json"  # The sign of life of the sweep's run.
        ended = on_ray(runtime, cells, mark, choose, most=opened.jobs, memory=opened.memory)
    else:
        threads = max(1, torch.get_num_threads() // opened.jobs)
        ended = in_processes(opened.jobs, cells.elsewhere, choose, threads=threads)
    any_died = False
    with closing(ended):
        for number, outcome in ended:
            place = places[number]
            if isinstance(outcome, CellReport):
                yield place, outcome
            else:
                any_died = True
                yield place, _died(opened.cells[place][0], outcome, workspace)
    if any_died and workspace.flow_run is not None:
        crash_tasks(workspace.flow_run, "the process of this cell was killed; the same command continues it")


def _cells(workspace: Workspace) -> Cells:
    flow_run = None if workspace.flow_run is None else flow_run_for_others()
    return Cells(workspace.store.root, workspace.store.url, workspace.tracker.run_id, flow_run)


def _died(cell: Cell, how: Died | str, workspace: Workspace) -> CellReport:
    """The report of a cell whose process died. Its run is marked in MLflow."""
    error = InputError(
        "The process of this cell ended before the cell did.",
        got=str(how),
        remedy="a machine that runs out of memory kills processes: use fewer --jobs, or --memory-mb; "
        "the same command continues from here",
    )
    end_dead_runs(workspace.store.root, workspace.tracker.uri, workspace.tracker.client)
    return CellReport(place=dict(cell.place), error=str(error))
