"""The numbers of a sweep as CSV, unrounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.tasks.editors.inference import MEASURES

__all__ = ["sweep_csv"]

_COLUMNS = ["facts", "tokens", "phase", "metric", "value", "low", "high", "over"]

_NO_INTERVAL = ("", "", "")


def sweep_csv(report: SweepReport) -> str:
    """CSV text with one row per cell, phase and metric."""
    varied = [key for axis in report.axes for key in axis]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*varied, *_COLUMNS, "mlflow_run_id", "error"])
    for cell in report.cells:
        place = [cell.place[key] for key in varied]
        if cell.error:
            writer.writerow([*place, *("" for _ in _COLUMNS), cell.mlflow_run_id or "", cell.error])
        for numbers in _numbers(cell):
            writer.writerow([*place, cell.facts, cell.tokens, *numbers, cell.mlflow_run_id, ""])
    return text.getvalue()


def _numbers(cell: CellReport) -> Iterator[tuple[object, ...]]:
    """Phase, metric, value, the ends of its interval, and what that resamples."""
    for phase, metrics in cell.metrics.items():
        for metric, value in metrics.items():
            if value is not None:
                known = phase == "after" and metric in cell.intervals
                yield phase, metric, value, *((*cell.intervals[metric], cell.intervals_over) if known else _NO_INTERVAL)
    for ability in cell.abilities:
        yield "before", ability.name, ability.before, *_NO_INTERVAL
        yield "after", ability.name, ability.after, *ability.interval, "examples"
    for result in cell.lm_eval:
        yield "before", f"lm-eval {result.name}", result.before, *_NO_INTERVAL
        yield "after", f"lm-eval {result.name}", result.after, *_NO_INTERVAL
    if cell.seconds_an_edit is not None:
        yield "after", "seconds an edit", cell.seconds_an_edit, *_NO_INTERVAL
    if cell.inference is not None:
        for name in MEASURES:
            yield "after", f"inference: {name}", getattr(cell.inference, name), *_NO_INTERVAL
    for moved in cell.drift:
        if moved.before is not None:
            yield "before", f"drift: {moved.measure}", moved.before, *_NO_INTERVAL
        yield "after", f"drift: {moved.measure}", moved.after, *_NO_INTERVAL
