"""Every metric with its interval, by metric family, and the few that come first."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.flows.html.blocks import Headline, Score, ScoreTable, Section
from factsmith.flows.html.numbers import counted, interval, percent
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.evaluation.answers_stage import Answer
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.resampling import EXPLAINED

__all__ = ["headlines", "scores"]

_MOST = 6
"""Most metrics at the top of a report."""


def headlines(report: Report, families: Sequence[MetricFamily]) -> list[Headline]:
    """The harmonic means and the metrics that they combine; of a family without a mean, all metrics."""
    if report.answers:
        return _held(report.answers)
    names = [
        name for family in families for name in ([family.mean[0], *family.mean[1]] if family.mean else family.metrics)
    ]
    known = [name for name in names if _value(report, "after", name) is not None]
    if not known:  # Facts without a true object have only metrics of the new object.
        known = [name for family in families for name in family.metrics if _value(report, "after", name) is not None]
    return [
        Headline(
            name,
            percent(_value(report, "after", name)),
            percent(_value(report, "before", name)),
            f"{interval(report.intervals.get(name))}, {counted(report.records.get(name, 0), 'fact')}",
        )
        for name in known[:_MOST]
    ]


def _held(answers: Sequence[Answer]) -> list[Headline]:
    """How many facts hold, in text and in a chat."""
    held, before = sum(one.holds for one in answers), sum(one.held for one in answers)
    found = [Headline("facts hold", f"{held:,}", f"{before:,}", f"of {counted(len(answers), 'fact')}")]
    if asked := [one.chat for one in answers if one.chat]:
        held = sum(one.holds for one in asked)
        found.append(Headline("hold in a chat", f"{held:,}", note=f"of {counted(len(asked), 'question')}"))
    return found


def scores(report: Report, families: Sequence[MetricFamily]) -> Section:
    """All metrics."""
    table = ScoreTable(
        [
            (
                family.name,
                [
                    Score(
                        name,
                        meaning,
                        _value(report, "before", name),
                        _value(report, "after", name),
                        report.intervals.get(name),
                        report.records.get(name, 0),
                        family.mean is not None and family.mean[0] == name,
                    )
                    for name, meaning in family.metrics.items()
                ],
            )
            for family in families
        ]
    )
    about = f"Percent, of {counted(report.facts, 'fact')}."
    if report.intervals_over:
        about += f" 95 % {EXPLAINED[report.intervals_over]}."
    return Section("Scores", [about, table])


def _value(report: Report, phase: str, name: str) -> float | None:
    return report.metrics.get(phase, {}).get(name)
