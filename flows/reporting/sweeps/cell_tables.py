"""Tables of a sweep with one row per cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.abilities.harness_stage import HarnessResult
from factsmith.tasks.abilities.measures import ACCURACY, Ability
from factsmith.tasks.evaluation.held_out.drift import MEASURES
from factsmith.tasks.evaluation.resampling import EXPLAINED

__all__ = ["ability_tables", "after", "cell_tables", "main_score", "number", "resampled"]


def cell_tables(report: SweepReport) -> list[TextTable]:
    """The main scores of each cell, its other metrics, and what its edits cost."""
    return [_cells(report), _other_metrics(report), _cost(report)]


def ability_tables(report: SweepReport) -> list[TextTable]:
    """General abilities and results of lm-eval of each cell. A table without rows has nothing to show."""
    return [_abilities(report), _lm_eval(report)]


def _cells(report: SweepReport) -> TextTable:
    """The main score of each cell, what it is made of, and its drift."""
    name, parts = report.mean or (None, report.metrics)
    drift = ["KL"] if any(cell.drift for cell in report.cells) else []
    notes = [resampled(report)] if name else []
    notes += [f"KL: {MEASURES[one]}" for one in drift]

    def row(cell: CellReport) -> list[str]:
        values = [number(after(cell, part)) for part in parts]
        if name:
            point = main_score(report, cell)
            values.append("-" if point is None else "{:.1f} {:.0f}-{:.0f}".format(*point))
        moved = {one.measure: f"{one.after:.2g}" for one in cell.drift}
        return [str(cell.facts), *values, *(moved.get(one, "-") for one in drift)]

    columns = ["facts", *parts, *([name] if name else []), *drift]
    rows = [None if cell.error else row(cell) for cell in report.cells]
    return _by_cell(report, "percent, with 95 % intervals", columns, rows, caption="\n".join(notes))


def _other_metrics(report: SweepReport) -> TextTable:
    """The metrics that are not part of the main score, after the edit."""
    main = {report.mean[0], *report.mean[1]} if report.mean else set(report.metrics)
    names = [one for one in report.metrics if one not in main]
    rows = [None if cell.error or not names else [number(after(cell, one)) for one in names] for cell in report.cells]
    return _by_cell(report, "other metrics, percent", names, rows)


def _cost(report: SweepReport) -> TextTable:
    """What an edit costs when it is made and when the model is used."""
    used = ["parameters", "FLOP", "time"] if any(cell.inference for cell in report.cells) else []
    notes = ["s an edit: seconds that a fact took when it was written"]
    if used:
        notes.append("of the edited model: further parameters and at most further FLOP, percent; time / unedited")

    def row(cell: CellReport) -> list[str] | None:
        if cell.error or cell.seconds_an_edit is None:
            return None
        cost = cell.inference
        numbers = [f"{cost.parameters:.2g}", f"{cost.flop:.2g}", f"{cost.time:.2f}"] if cost else ["0", "0", "1"]
        return [f"{cell.seconds_an_edit:.2g}", *numbers[: len(used)]]

    return _by_cell(report, "cost", ["s an edit", *used], map(row, report.cells), caption="\n".join(notes))


def _abilities(report: SweepReport) -> TextTable:
    """The accuracy of each task before and after the edit, with one row per cell."""
    shown = [
        {f"{one.task} {one.way}": _change(one, ".1f") for one in cell.abilities if one.metric == ACCURACY}
        for cell in report.cells
    ]
    return _before_and_after(report, "accuracy in percent", shown)


def _lm_eval(report: SweepReport) -> TextTable:
    """Each metric of lm-eval before and after the edit, with one row per cell."""
    shown = [{one.name: _change(one, ".4g") for one in cell.lm_eval} for cell in report.cells]
    return _before_and_after(report, "lm-eval", shown)


def _change(one: Ability | HarnessResult, precision: str) -> str:
    return f"{one.before:{precision}} -> {one.after:{precision}}"


def _before_and_after(report: SweepReport, title: str, shown: Sequence[Mapping[str, str]]) -> TextTable:
    """A table with one row per cell that has numbers, and one column per name."""
    names = list(dict.fromkeys(name for by_name in shown for name in by_name))
    rows = [[by_name.get(name, "-") for name in names] if by_name else None for by_name in shown]
    return _by_cell(report, f"{title}, before -> after", names, rows, wrapped=names)


def _by_cell(
    report: SweepReport, title: str, columns: Sequence[str], rows: Iterable[Sequence[str] | None], **more: Any
) -> TextTable:
    """A table with the place of each cell before its row. A cell whose row is ``None`` is left out."""
    varied = [axis[0] for axis in report.axes]
    headings = [*(key.rpartition(".")[2] for key in varied), *columns]
    table = TextTable(f"{report.name}: {title}", headings, labels=len(varied), **more)
    for cell, row in zip(report.cells, rows, strict=True):
        if row is not None:
            table.add(*(cell.place[key] for key in varied), *row)
    return table


def after(cell: CellReport, metric: str) -> float | None:
    """A metric of the edited model; ``None`` if the records do not give it."""
    return cell.metrics["after"].get(metric)


def main_score(report: SweepReport, cell: CellReport) -> tuple[float, float, float] | None:
    """The main score and the ends of its interval; ``None`` if the records do not give it."""
    name = report.mean[0] if report.mean else ""
    value = after(cell, name)
    return None if value is None else (value, *cell.intervals[name])


def number(value: float | None) -> str:
    """``value`` as the tables show it."""
    return "-" if value is None else f"{value:.1f}"


def resampled(report: SweepReport) -> str:
    """What the intervals of the cells resample: one line for each kind, with the number of its cells if they differ."""
    found = Counter(cell.intervals_over for cell in report.cells if cell.intervals_over)
    lines = [EXPLAINED[over] + (f" ({count} cells)" if len(found) > 1 else "") for over, count in found.items()]
    return "\n".join(lines)
