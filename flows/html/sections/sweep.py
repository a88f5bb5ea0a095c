"""The results of a sweep: its tables, its charts, and its cells."""

from __future__ import annotations

from collections.abc import Iterator

from factsmith.flows.html.blocks import Block, Charts, Headline, Section, Verbatim
from factsmith.flows.html.chart import Line, LineChart, is_wide
from factsmith.flows.html.numbers import interval, percent, span
from factsmith.flows.reporting.sweeps.reports import SweepReport
from factsmith.flows.reporting.sweeps.results import failures, points_by_multiplier, sweep_tables
from factsmith.flows.reporting.sweeps.sequences import trajectories
from factsmith.flows.reporting.text_table import TextTable

__all__ = ["cells", "results", "sweep_headlines"]


def sweep_headlines(report: SweepReport) -> list[Headline]:
    """The range of the main score, and how many runs there are."""
    seconds = sum(cell.seconds for cell in report.cells)
    failed = sum(cell.error is not None for cell in report.cells)
    found = []
    if report.mean:
        name = report.mean[0]
        scored = [cell for cell in report.cells if cell.metrics and cell.metrics["after"].get(name) is not None]
        for which, choose in (("highest", max), ("lowest", min)):
            if scored:
                cell = choose(scored, key=lambda one: one.metrics["after"][name] or 0.0)
                where = ", ".join(cell.place[axis[0]] for axis in report.axes)
                ends = interval(cell.intervals.get(name))
                found.append(Headline(f"{which} {name}", percent(cell.metrics["after"][name]), note=f"{ends}: {where}"))
    return [
        *found,
        Headline("runs", f"{len(report.cells):,}", note=f"{failed:,} failed" if failed else "none failed"),
        Headline("time", span(seconds), note="all runs together"),
    ]


def results(report: SweepReport) -> Section:
    """Tables and charts, as in the papers."""
    charts = [*_by_multiplier(report), *_by_edits(report)]
    blocks: list[Block] = [*([Charts(charts)] if charts else []), *sweep_tables(report)]
    blocks += [Verbatim(text) for text in failures(report)]
    return Section("Results", blocks)


def cells(report: SweepReport) -> Section:
    """The run of each cell, and what it cost."""
    varied = [axis[0] for axis in report.axes]
    columns = [*(key.rpartition(".")[2] for key in varied), "run", "facts", "tokens", "stages built", "cached", "time"]
    table = TextTable("", columns, labels=len(varied) + 1)
    for cell in report.cells:
        built = sum(stage.state == "built" for stage in cell.stages)
        table.add(
            *(cell.place[key] for key in varied),
            (cell.mlflow_run_id or "–")[:8],
            f"{cell.facts:,}" if cell.facts else "–",
            f"{cell.tokens:,}" if cell.tokens else "–",
            str(built),
            str(len(cell.stages) - built),
            span(cell.seconds),
            weak=cell.error is not None,
        )
    about = "Each run has its own report: `factsmith report RUN FILE` writes it."
    return Section("Runs", [about, table])


def _by_multiplier(report: SweepReport) -> Iterator[LineChart]:
    """The score against d_m: one chart per variant, one line with intervals per batch size."""
    if not report.mean:
        return
    name = report.mean[0]
    for variant, by_batch in points_by_multiplier(report).items():
        lines = [
            Line(
                f"batch {batch}" if batch else name,
                {multiplier: value for multiplier, (value, _, _) in curve.items()},
                ends={multiplier: (low, high) for multiplier, (_, low, high) in curve.items()},
            )
            for batch, curve in by_batch.items()
        ]
        yield LineChart(f"{variant or report.name}: {name}, percent", "d_m", lines, share=True, log_x=True)


def _by_edits(report: SweepReport) -> Iterator[LineChart]:
    """The curves of sequences: one chart per curve, one line per cell."""
    for title, curves in trajectories(report).items():
        lines = [Line(name, points) for name, points in curves.items()]
        share = "percent" in title
        yield LineChart(title, "edits", lines, share=share, log_y=not share and is_wide(lines))
