"""Flow ``sweep``: many runs that differ in a few settings, each stage that they share run once."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from threading import Event, Semaphore
from typing import Any

from prefect import Flow, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.artifacts.formats import load_table
from factsmith.artifacts.store import Store
from factsmith.flows.cells import Benches, Sweep, open_sweep
from factsmith.flows.configuration.grid import Cell
from factsmith.flows.precompute import Prepared
from factsmith.flows.reporting.curves import Curves
from factsmith.flows.reporting.reports import CellReport, SweepReport
from factsmith.flows.reporting.sweeps import log_results
from factsmith.flows.trial import score_trial
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.evaluation.summary import intervals, record_values
from factsmith.tasks.pipeline.paths import home
from factsmith.tasks.pipeline.progress import stopped_by, work
from factsmith.tasks.pipeline.resource_errors import shortages
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.settings import Settings
from factsmith.tasks.tracking.runs import RECORDS
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["run_sweep", "sweep"]

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 0.5
"""Seconds that cells are waited for at a stretch."""


@flow(name="sweep")
def sweep(words: list[str], jobs: int = 1, memory_mb: int | None = None) -> SweepReport:
    """Run every cell of a grid of settings.

    Args:
        words: choices and settings; those with several values, apart by commas, are the axes.
        jobs: cells that may run at once.
        memory_mb: of all cells that run at once.
    """
    return run_sweep(open_sweep(words, jobs=jobs, memory_mb=memory_mb))


def run_sweep(opened: Sweep) -> SweepReport:
    """The flow, of a sweep whose input has been looked at already."""
    runner: Any = ThreadPoolTaskRunner(max_workers=opened.jobs)
    report: SweepReport = Flow(lambda: _report(opened), name="cells", task_runner=runner)()
    return report


def _report(opened: Sweep) -> SweepReport:
    """Run the cells of a sweep: those that need most tokens first, since smaller covariances are parts of theirs.

    A cell that fails is reported, and the rest go on. A sweep that was interrupted goes on where it was: what has been
    built is there.

    Raises:
        InputError: every cell failed.
    """
    from prefect.runtime import flow_run

    store = Store(home())
    first = opened.cells[0][1]
    with store.in_use():
        with shortages("Logging the sweep", store.root, first.runtime), store.lock("mlflow"):
            tracker = Tracker(
                store.root,
                experiment=first.tracking.experiment,
                name=opened.grid.name,
                flow="sweep",
                settings=_common([settings.model_dump(mode="json") for _, settings in opened.cells]),
            )
        try:
            reports = _run_cells(opened, store, tracker.run_id)
            if all(report.error for report in reports):
                raise InputError(f"All {len(reports)} cells failed.", got=reports[0].error)
            families = load_families([name for _, one in opened.cells for name in one.dataset.metrics])
            told = {name for cell in reports for name in cell.intervals}
            names = dict.fromkeys(name for family in families for name in family.metrics)
            means = ((one.mean[0], list(one.mean[1])) for one in families if one.mean and one.mean[0] in told)
            report = SweepReport(
                run_id=str(flow_run.id),
                mlflow_run_id=tracker.run_id,
                name=opened.grid.name,
                axes=[list(axis) for axis in opened.grid.axes],
                metrics=[name for name in names if name in told],
                mean=next(means, None),
                cells=reports,
            )
            log_results(tracker, report)
        except BaseException:
            with suppress(Exception):  # what ended the sweep matters more than the end of its log
                tracker.end(failed=True)
            raise
        tracker.end(failed=False)
    return report


def _run_cells(opened: Sweep, store: Store, parent: str) -> list[CellReport]:
    """Reports of all cells, in the order of the axes."""
    benches = Benches(store)
    reports = {
        place: CellReport(place=dict(opened.cells[place][0].place), error=error)
        for place, error in opened.refused.items()
    }
    stopping = Event()
    with work("cells", len(opened.cells)) as advance:
        advance(len(reports))

        @task(name="cell", persist_result=False, cache_policy=NO_CACHE)
        def run(place: int) -> CellReport:
            cell, settings = opened.cells[place]
            with stopped_by(stopping), benches.lent(settings) as bench:
                report = _run_cell(bench, cell, parent)
            advance(1)
            return report

        waiting = [place for place in range(len(opened.cells)) if place not in reports]
        waiting.sort(key=lambda place: _most_tokens_first(opened.cells[place][1]))
        if opened.jobs == 1:
            reports |= {place: run(place) for place in waiting}
        else:
            try:
                futures = {place: run.submit(place) for place in waiting}
                _wait(futures.values())
                reports |= {place: future.result() for place, future in futures.items()}
            except BaseException:  # whoever ends the sweep does not want to wait for its cells
                stopping.set()
                raise
    return [reports[place] for place in sorted(reports)]


def _wait(futures: Collection[PrefectFuture[CellReport]]) -> None:
    """Until all have ended; one wait without a limit can sleep through a Ctrl-C that comes as it begins."""
    ended = Semaphore(0)
    for future in futures:
        future.add_done_callback(lambda _: ended.release())
    for _ in futures:
        while not ended.acquire(timeout=_LONGEST_WAIT):
            pass


def _run_cell(bench: Bench, cell: Cell, parent: str) -> CellReport:
    began = time.perf_counter()
    error, found = None, {}
    try:
        found = _scored(bench, *score_trial(bench, cell.name, flow="cell", parent=parent))
    except FactsmithError as failure:
        error = str(failure)
    except Exception as failure:  # our mistake, which must not take the other cells with it
        logger.exception("Cell %s", cell.name)
        error = f"{type(failure).__name__}: {failure}"
    return CellReport(
        place=dict(cell.place),
        error=error,
        mlflow_run_id=bench.tracker.run_id if bench.begun else None,
        stages=bench.reports,
        seconds=round(time.perf_counter() - began, 3),
        **found,
    )


def _scored(bench: Bench, scores: Scores, course: Curves, prepared: Prepared) -> dict[str, Any]:
    after = record_values(load_table(scores.artifact.path / RECORDS), "after", bench.families)
    return {
        "facts": scores.artifact.summary["records"],
        "tokens": prepared.tokens,
        "dynamic_multiplier": prepared.tokens / bench.checkpoint.key_width,
        "metrics": {"before": scores.before, "after": scores.after},
        "course": course,
        "intervals": {name: (found.low, found.high) for name, found in intervals(after).items()},
    }


def _most_tokens_first(settings: Settings) -> tuple[str, float, float]:
    """One model after the other; what a large covariance takes holds what smaller ones need."""
    return settings.model.path, -(settings.corpus.tokens or 0), -settings.corpus.multipliers[-1]


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of some nested settings agree on."""
    first = settings[0]
    common: dict[str, Any] = {}
    for key, value in first.items():
        others = [one.get(key) for one in settings]
        if isinstance(value, Mapping) and all(isinstance(other, Mapping) for other in others):
            common[key] = _common([other for other in others if isinstance(other, Mapping)])
        elif all(other == value for other in others):
            common[key] = value
    return common
