"""Cells of a sweep, one after the other, in the process of the sweep or in another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import FactsmithError
from factsmith.artifacts.remote.shared.opening import store_at
from factsmith.flows.configuration.grid import Cell
from factsmith.flows.precompute import Prepared
from factsmith.flows.reporting.reports import Report
from factsmith.flows.reporting.sweeps.reports import CellReport
from factsmith.flows.run import run_part
from factsmith.flows.sweeps.lender import Lender
from factsmith.tasks.pipeline.page import continued_flow_run, run_as_task
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.planning.settings import Settings

__all__ = ["Cells"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cells:
    """Runs cells of a sweep, in this process or in another that it is sent to.

    Attributes:
        home: the folder of the artifact store.
        url: where its artifacts are if it is shared.
        parent: id of the sweep's run in MLflow.
        flow_run: what another process needs to know of the sweep's flow run in Prefect; ``None`` without Prefect.
    """

    home: Path
    url: str | None
    parent: str
    flow_run: Mapping[str, Any] | None

    @contextmanager
    def here(self) -> Iterator[Callable[[tuple[Cell, Settings]], CellReport]]:
        """Run cells in the process of the sweep. Yields what runs a cell with its settings."""
        yield self._runner(None)

    @contextmanager
    def elsewhere(self, number: int) -> Iterator[Callable[[tuple[Cell, Settings]], CellReport]]:
        """Run cells in another process, which has a number among those that run at the same time."""
        with ExitStack() as prefect:
            if self.flow_run is not None:
                prefect.enter_context(continued_flow_run(self.flow_run))
            yield self._runner(number)

    def _runner(self, number: int | None) -> Callable[[tuple[Cell, Settings]], CellReport]:
        lender = Lender(store_at(self.home, self.url, progress), number)

        def run(given: tuple[Cell, Settings]) -> CellReport:
            cell, settings = given
            body = partial(_run_cell, lender, cell, settings, self.parent)
            return body() if self.flow_run is None else run_as_task("cell", cell.name, body)

        return run


def _run_cell(lender: Lender, cell: Cell, settings: Settings, parent: str) -> CellReport:
    started = time.perf_counter()
    error, found, run = None, {}, None
    try:
        run = lender.run(settings)
        found = _scored(*run_part(run, cell.name, flow="cell", parent=parent))
    except FactsmithError as failure:
        error = str(failure)
    except Exception as failure:  # A bug of ours must not stop the other cells.
        logger.exception("Cell %s", cell.name)
        error = f"{type(failure).__name__}: {failure}"
    workspace = run.workspace if run is not None else None
    return CellReport(
        place=dict(cell.place),
        error=error,
        mlflow_run_id=workspace.tracker.run_id if workspace is not None and workspace.begun else None,
        stages=workspace.reports if workspace is not None else [],
        seconds=round(time.perf_counter() - started, 3),
        **found,
    )


def _scored(report: Report, prepared: Prepared) -> dict[str, Any]:
    names = (
        "facts", "dynamic_multiplier", "metrics", "trajectory", "drift", "abilities", "lm_eval", "intervals",
        "intervals_over", "seconds_an_edit", "inference",
    )  # fmt: skip
    return {"tokens": prepared.tokens, **{name: getattr(report, name) for name in names}}
