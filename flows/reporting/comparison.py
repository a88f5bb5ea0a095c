"""Runs side by side: which settings differ, what each scored, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, computed_field

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import past_settings
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.summary import (
    PHASES,
    Interval,
    RecordValues,
    differences,
    intervals,
    record_values,
)
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.tracking.tracker import flatten

__all__ = ["ComparedRun", "Comparison", "Score", "ScoredRun", "compare", "scored"]

_LAST_BITS = 1e-9


@dataclass(frozen=True)
class ScoredRun:
    """What is compared of a run.

    Attributes:
        id: in MLflow.
        name: shown there.
        started: when.
        settings: flat, as text.
        metrics: that it was scored on, in the order they are shown in.
        values: by phase, of each fact.
    """

    id: str
    name: str
    started: datetime
    settings: Mapping[str, str]
    metrics: Sequence[str]
    values: Mapping[str, RecordValues]

    @property
    def facts(self) -> set[str]:
        return set(self.values["after"].records)


class ComparedRun(BaseModel):
    """One of the runs.

    Attributes:
        id: in MLflow.
        name: shown there.
        started: when.
        facts: that were scored.
        shared: how many of them the first run scored too.
        paired: whether they are the first run's, all and no others: it is then compared with it fact by fact, and
            otherwise as if the two had no fact in common.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    started: datetime
    facts: int
    shared: int
    paired: bool


class Score(BaseModel):
    """A metric of a run, in percent.

    Attributes:
        interval: its value, and the ends of its 95 % interval.
        difference: from the first run; null for that run itself, and where one of the two does not tell the metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval: Interval
    difference: Interval | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def noise(self) -> bool | None:
        """Whether the interval of the difference holds zero."""
        return self.difference.holds_zero if self.difference else None


class Comparison(BaseModel):
    """Runs side by side, as ``--json`` prints it. Lists are in the order of ``runs``.

    An interval says how far another draw of as many facts could move its number (percentile bootstrap over facts). That
    of few facts is too narrow, and that of facts which all agree has no width. Each is made for its metric alone and
    none is corrected for there being many: of twenty metrics in which two runs do not differ, one is expected to show a
    difference.

    Attributes:
        runs: the first is what the others are compared with.
        settings: those that differ, as MLflow shows them; null for a run that knows no such setting.
        scores: by phase and metric; null for a run that does not tell it. ``before`` is there if it differs.
        means: metrics that are harmonic means of others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: list[ComparedRun]
    settings: dict[str, list[str | None]]
    scores: dict[str, dict[str, list[Score | None]]]
    means: list[str]


def scored(run: PastRun) -> ScoredRun:
    """What ``run`` has kept of its scores.

    Raises:
        InputError: it has none, or none that this version of Factsmith knows.
    """
    if not any(name.startswith("after/") for name in run.metrics):
        raise InputError(
            f"Run {run.id} has no scores to compare.",
            got=f"{run.name}, {run.status}",
            expected="a run that scored what it wrote: of run or evaluate, a cell of sweep, a trial of tune",
            remedy=f"score its edits with `factsmith evaluate {run.id[:8]}`" if run.flow == "edit" else None,
        )
    families = load_families(past_settings(run).dataset.metrics)
    metrics = [name for family in families for name in family.metrics]
    records = run.records()
    if forgotten := set(records["metric"].to_pylist()).difference(metrics):
        raise InputError(
            f"Run {run.id} was scored by another version of Factsmith.",
            got=f"metrics that are not known: {', '.join(sorted(forgotten))}",
            remedy=f"score its edits with `factsmith evaluate {run.id[:8]}`",
        )
    return ScoredRun(
        id=run.id,
        name=run.name,
        started=run.started,
        settings=flatten(run.content),
        metrics=metrics,
        values={phase: record_values(records, phase, families) for phase in PHASES},
    )


def compare(runs: Sequence[ScoredRun]) -> Comparison:
    """Compare each run with the first."""
    first = runs[0]
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    settings = {name: [run.settings.get(name) for run in runs] for name in names}
    before_differs = any(not _same(first.values["before"], run.values["before"]) for run in runs[1:])
    return Comparison(
        runs=[
            ComparedRun(
                id=run.id,
                name=run.name,
                started=run.started,
                facts=len(run.facts),
                shared=len(run.facts & first.facts),
                paired=run.facts == first.facts,
            )
            for run in runs
        ],
        settings={name: values for name, values in settings.items() if len(set(values)) > 1},
        scores={phase: _scores(runs, phase) for phase in PHASES if phase == "after" or before_differs},
        means=list(dict.fromkeys(name for run in runs for name in run.values["after"].means)),
    )


def _scores(runs: Sequence[ScoredRun], phase: str) -> dict[str, list[Score | None]]:
    values = [run.values[phase] for run in runs]
    told = [intervals(one) for one in values]
    moved = [{}, *(differences(values[0], one) for one in values[1:])]
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return {
        name: [
            Score(interval=interval[name], difference=difference.get(name)) if name in interval else None
            for interval, difference in zip(told, moved, strict=True)
        ]
        for name in names
    }


def _same(first: RecordValues, other: RecordValues) -> bool:
    """Whether both come to the same numbers. The order of the facts decides the last bits of a mean."""
    one, two = first.summary(), other.summary()
    return one.keys() == two.keys() and all(
        (value is None) == (two[name] is None) and math.isclose(value or 0, two[name] or 0, abs_tol=_LAST_BITS)
        for name, value in one.items()
    )
