"""The results of a sweep of sequences: scores and perplexity by the number of edits, and collapse."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from factsmith.flows.reporting.curves import ALL_FACTS, COLLAPSE, FIRST_FACTS, KL, PERPLEXITY, Curves, collapse, evenly
from factsmith.flows.reporting.figures import trajectories_figure
from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.evaluation.summary import FIRST
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["log_sequences", "sequence_tables", "trajectories", "write_sequences"]

_COLUMNS = 5
"""Most numbers of edits that a table shows. The CSV file has all."""


def sequence_tables(report: SweepReport) -> Iterator[TextTable]:
    """One table per curve: a score of all facts so far, the score of the first facts, perplexity and KL."""
    varied = [axis[0] for axis in report.axes]
    for curve, title in _titles(report).items():
        counts = _shown({count for cell in report.cells for count in cell.trajectory.get(curve, {})})
        table = TextTable(
            f"{report.name}: {title} by number of edits",
            [*(key.rpartition(".")[2] for key in varied), *(f"{count:,}" for count in counts), "collapse"],
            labels=len(varied),
            caption=f"collapse: edits after which perplexity is at least {COLLAPSE:g} times that of the unedited model",
        )
        digits = "#.4g" if curve in (PERPLEXITY, KL) else ".1f"
        for cell in report.cells:
            if points := cell.trajectory.get(curve):
                values = [f"{points[count]:{digits}}" if count in points else "" for count in counts]
                when = collapse(cell.trajectory)
                places = [cell.place[key] for key in varied]
                table.add(*places, *values, "-" if when is None else f"{when:,}", weak=when is not None)
        yield table


def write_sequences(report: SweepReport, folder: Path) -> list[Path]:
    """Write ``sequences.csv`` and ``sequences.png`` to ``folder``, if the cells are sequences."""
    panels = trajectories(report)
    if not panels:
        return []
    written = [folder / "sequences.csv", folder / "sequences.png"]
    written[0].write_text(_csv(report), encoding="utf-8")
    trajectories_figure(panels).savefig(written[1], dpi=150)
    return written


def trajectories(report: SweepReport) -> dict[str, dict[str, dict[int, float]]]:
    """The curves of cells that are sequences, by title and by cell; empty if none is."""
    found = {_name(report, cell): cell.trajectory for cell in report.cells if cell.trajectory}
    return {title: _of(found, curve) for curve, title in _titles(report).items()} if found else {}


def log_sequences(tracker: Tracker, report: SweepReport) -> None:
    """Log the curves of each cell to the sweep's run, with the number of edits as step."""
    titles = _titles(report)
    for cell in report.cells:
        shown = {name: points for name, points in cell.trajectory.items() if name in titles}
        variant = _name(report, cell).replace("/", "_")
        tracker.curves({f"{variant}/{name}": points for name, points in shown.items()})


def _shown(counts: Collection[int]) -> list[int]:
    """The counts that fit a terminal: 0 if it is one of them, the last one, and others evenly spread."""
    none = [count for count in counts if not count]
    others = sorted(count for count in counts if count)
    return none + evenly(others, _COLUMNS - len(none))


def _titles(report: SweepReport) -> dict[str, str]:
    """Titles of the curves to show: those of the mean, or of each metric if there is no mean, perplexity and KL."""
    found = {}
    for name in [report.mean[0]] if report.mean else report.metrics:
        found[ALL_FACTS.format(name)] = f"{name} of all facts, percent"
        found[FIRST_FACTS.format(name)] = f"{name} of the first {FIRST} facts, percent"
    found |= {PERPLEXITY: "perplexity of held-out text", KL: "KL of held-out text, nats"}
    return {curve: title for curve, title in found.items() if curve != KL or _measured(report, curve)}


def _measured(report: SweepReport, curve: str) -> bool:
    """Whether some cell has the curve. Sequences of earlier versions, and with drift.edits=0, have no KL."""
    return any(curve in cell.trajectory for cell in report.cells)


def _name(report: SweepReport, cell: CellReport) -> str:
    """A name that distinguishes a cell from the others."""
    return ", ".join(cell.place[axis[0]] for axis in report.axes)


def _of(trajectories: dict[str, Curves], curve: str) -> dict[str, dict[int, float]]:
    return {name: trajectory[curve] for name, trajectory in trajectories.items() if curve in trajectory}


def _csv(report: SweepReport) -> str:
    """CSV text with one row per cell, curve and number of edits."""
    varied = [key for axis in report.axes for key in axis]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*varied, "curve", "edits", "value", "mlflow_run_id"])
    for cell in report.cells:
        for curve, points in cell.trajectory.items():
            for edits, value in points.items():
                writer.writerow([*(cell.place[key] for key in varied), curve, edits, value, cell.mlflow_run_id])
    return text.getvalue()
