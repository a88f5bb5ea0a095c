"""The results of a sweep: the tables and plots of the papers, from the reports of its cells.

If the dynamic multiplier d_m varies, its largest value represents the full covariance. The smaller values are fast, and
should reach 95 % of its score [Gupta et al. 2025, section 3].
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from factsmith.flows.configuration.grid import MULTIPLIER
from factsmith.flows.reporting.figures import score_by_multiplier
from factsmith.flows.reporting.sweeps.cell_tables import (
    ability_tables,
    after,
    cell_tables,
    main_score,
    number,
    resampled,
)
from factsmith.flows.reporting.sweeps.numbers import sweep_csv
from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.sweeps.sequences import log_sequences, sequence_tables, write_sequences
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["Curve", "curves", "failures", "log_sweep", "points_by_multiplier", "sweep_tables", "write_sweep"]

BATCH = "method.batch_size"
AUTO = "auto"
THRESHOLD = 0.95
"""Share of the full covariance's score that a smaller, fast one should reach."""

Curve = Mapping[str, CellReport]
"""Cells that differ only in d_m, ascending, by the value of the setting: a number, or ``auto``."""


def sweep_tables(report: SweepReport) -> list[TextTable]:
    """The tables of a sweep.

    If d_m varies, these are S by d_m and the papers' layout. Otherwise they are a table with one row per cell, and
    tables of sequences by the number of edits. General abilities, if they were measured, have a table of their own.
    """
    done = [cell for cell in report.cells if not cell.error]
    if not done:
        return []
    if report.mean and _varies(report, MULTIPLIER):
        found = [*_by_multiplier(report), *_full_and_fast(report)]
    else:
        found = [*cell_tables(report), *sequence_tables(report)]
    return [table for table in (*found, *ability_tables(report)) if table.rows]


def curves(report: SweepReport) -> dict[str, dict[str, Curve]]:
    """Cells by variant, batch size and d_m, without those that failed."""
    found: dict[str, dict[str, dict[str, CellReport]]] = defaultdict(lambda: defaultdict(dict))
    for cell in sorted(report.cells, key=_multiplier):
        if not cell.error:
            found[_variant(report, cell)][cell.place.get(BATCH, "")][_asked(cell)] = cell
    return {variant: dict(by_batch) for variant, by_batch in found.items()}


def points_by_multiplier(report: SweepReport) -> dict[str, dict[str, dict[float, tuple[float, float, float]]]]:
    """The main score and the ends of its interval, by variant, batch size and d_m; empty if d_m does not vary."""
    if not (report.mean and _varies(report, MULTIPLIER)):
        return {}
    return {
        variant: {
            batch: {
                _multiplier(cell): point for cell in curve.values() if (point := main_score(report, cell)) is not None
            }
            for batch, curve in by_batch.items()
        }
        for variant, by_batch in curves(report).items()
    }


def write_sweep(report: SweepReport, folder: Path) -> list[Path]:
    """Write ``results.md``, ``results.csv``, a plot if d_m varies, and the files of sequences. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    title = f"# {report.name}\n\n" + "\n".join(table.markdown() for table in sweep_tables(report))
    failed = "".join(f"\n{line}\n" for line in failures(report))
    (folder / "results.md").write_text(title + failed, encoding="utf-8")
    (folder / "results.csv").write_text(sweep_csv(report), encoding="utf-8")
    written = [folder / "results.md", folder / "results.csv"]
    if report.mean and (points := points_by_multiplier(report)):
        written.append(folder / "score_by_multiplier.png")
        score_by_multiplier(points, report.mean[0], THRESHOLD).savefig(written[-1], dpi=150)
    return written + write_sequences(report, folder)


def log_sweep(tracker: Tracker, report: SweepReport) -> None:
    """Attach tables and plots to the sweep's run, and log scores by the tokens of C0, or by the number of edits."""
    with tempfile.TemporaryDirectory() as folder:
        for path in write_sweep(report, Path(folder)):
            tracker.file(path)
    tracker.metrics({"cells": len(report.cells), "cells_failed": sum(cell.error is not None for cell in report.cells)})
    if report.mean and _varies(report, MULTIPLIER):
        for variant, by_batch in curves(report).items():
            for batch, curve in by_batch.items():
                name = "/".join(
                    part
                    for part in (variant.replace("/", "_"), f"batch_{batch}" if batch else "", report.mean[0])
                    if part
                )
                points = {cell.tokens: after(cell, report.mean[0]) for cell in curve.values()}
                tracker.curves({name: {tokens: value for tokens, value in points.items() if value is not None}})
    log_sequences(tracker, report)


# ----------------------------------------------------------------------------------------------------------- tables


def _by_multiplier(report: SweepReport) -> Iterator[TextTable]:
    """The main score, with one row per batch size and one column per d_m."""
    if not report.mean:
        return
    name = report.mean[0]
    multipliers = _all_asked(report)
    table = TextTable(
        f"{report.name}: {name} by d_m, percent, and 95 % interval",
        [*_headings(report), *multipliers],
        labels=len(_headings(report)),
        caption=f"! below {THRESHOLD:.0%} of the score at the largest d_m\n{resampled(report)}",
    )
    for variant, by_batch in curves(report).items():
        for batch, curve in by_batch.items():
            full = after([*curve.values()][-1], name) or 0.0
            cells = []
            for multiplier in multipliers:
                if multiplier not in curve:
                    cells.append("failed")
                    continue
                if (point := main_score(report, curve[multiplier])) is None:
                    cells.append("-")
                    continue
                value, low, high = point
                found = f" at {_multiplier(curve[multiplier]):g}" if multiplier == AUTO else ""
                cells.append(f"{value:.1f}{' !' if value < THRESHOLD * full else ''}\n{low:.0f}-{high:.0f}{found}")
            table.add(*_places(report, variant, batch), *cells)
        table.end_section()
    yield table


def _full_and_fast(report: SweepReport) -> Iterator[TextTable]:
    """The papers' layout: one table per variant, one row per d_m and batch size, and each metric as full/fast."""
    if not report.mean:
        return
    name, parts = report.mean
    for variant, by_batch in curves(report).items():
        asked = [one for one in _all_asked(report) if any(one in curve for curve in by_batch.values())]
        numbers = [one for one in asked if one != AUTO]
        full = numbers[-1] if numbers else AUTO
        batches = ["batch"] if _varies(report, BATCH) else []
        table = TextTable(
            f"{variant or report.name}: full (d_m = {full})/fast, percent",
            ["d_m", *batches, *parts, name, "share"],
            labels=0,
            caption=f"Rows in red are below {THRESHOLD:.0%} of the full {name}.",
        )
        for multiplier in [one for one in asked if one != full]:
            for batch, curve in by_batch.items():
                if full not in curve or multiplier not in curve:
                    continue
                pairs = [(after(curve[full], part), after(curve[multiplier], part)) for part in (*parts, name)]
                whole, fast = pairs[-1]
                share = fast / whole if whole and fast is not None else None
                table.add(
                    multiplier,
                    *([batch] if batches else []),
                    *(f"{number(one)}/{number(other)}" for one, other in pairs),
                    "-" if share is None else f"{share:.0%}",
                    weak=share is not None and share < THRESHOLD,
                )
            if table.rows:
                table.end_section()
        yield table


# ---------------------------------------------------------------------------------------------------------- reading


def _varies(report: SweepReport, key: str) -> bool:
    return any(key in axis for axis in report.axes)


def _headings(report: SweepReport) -> list[str]:
    """Headings of the columns that identify a row's curve."""
    others = [axis[0] for axis in report.axes if BATCH not in axis and MULTIPLIER not in axis]
    return [*(["variant"] if others else []), *(["batch"] if _varies(report, BATCH) else [])]


def _places(report: SweepReport, variant: str, batch: str) -> list[str]:
    """The values below these headings."""
    return [{"variant": variant, "batch": batch}[heading] for heading in _headings(report)]


def _variant(report: SweepReport, cell: CellReport) -> str:
    """The settings of a cell that vary, without batch size, d_m and what varies together with them."""
    others = [axis[0] for axis in report.axes if BATCH not in axis and MULTIPLIER not in axis]
    return ", ".join(cell.place[key] if key == "method" else f"{key}={cell.place[key]}" for key in others)


def _asked(cell: CellReport) -> str:
    """The d_m of a cell as it was given."""
    asked = cell.place[MULTIPLIER]
    return asked if asked == AUTO else f"{float(asked):g}"


def _all_asked(report: SweepReport) -> list[str]:
    """All d_m that were given: numbers, ascending, then ``auto``."""
    asked = {_asked(cell) for cell in report.cells}
    return sorted(asked, key=lambda one: float("inf") if one == AUTO else float(one))


def _multiplier(cell: CellReport) -> float:
    """The d_m of a cell; 0 if it was ``auto`` and the cell failed."""
    return cell.dynamic_multiplier if _asked(cell) == AUTO else float(cell.place[MULTIPLIER])


def failures(report: SweepReport) -> list[str]:
    """One line per error, with the cells that failed with it."""
    by_error: dict[str, list[str]] = defaultdict(list)
    for cell in report.cells:
        if cell.error:
            by_error[cell.error].append(" ".join(f"{key}={value}" for key, value in cell.place.items()))
    return [f"{len(cells)} failed ({'; '.join(cells)}):\n{error}" for error, cells in by_error.items()]
