"""Runs side by side: the settings that differ, the scores, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel, ConfigDict, computed_field

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import past_settings
from factsmith.flows.reporting.curves import DRIFT
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.evaluation.resampling import Resampled
from factsmith.tasks.evaluation.summary import (
    PHASES,
    Interval,
    RecordValues,
    differences,
    intervals,
    record_values,
    resampled_together,
)
from factsmith.tasks.tracking.runs import PastRun
from factsmith.tasks.tracking.tracker import flatten

__all__ = ["ComparedRun", "Comparison", "Score", "ScoredRun", "compare", "scored"]

_LAST_BITS = 1e-9

_AFTER = "after/"
"""The beginning of a metric's name in MLflow, for the edited model."""


@dataclass(frozen=True)
class ScoredRun:
    """The parts of a run that are compared.

    Attributes:
        id: id of the run in MLflow.
        name: name of the run in MLflow.
        started: when the run started.
        settings: the settings, flat, as text.
        metrics: the metrics of the run, in display order.
        values: the value of each metric for each fact, by phase.
        drift: the measures of the edited model's drift, by name.
        abilities: general abilities of the edited model and its results of lm-eval, by name.
    """

    id: str
    name: str
    started: datetime
    settings: Mapping[str, str]
    metrics: Sequence[str]
    values: Mapping[str, RecordValues]
    drift: Mapping[str, float] = field(default_factory=dict)
    abilities: Mapping[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> set[str]:
        return set(self.values["after"].records)


class ComparedRun(BaseModel):
    """One of the runs.

    Attributes:
        id: id of the run in MLflow.
        name: name of the run in MLflow.
        started: when the run started.
        facts: number of facts that were scored.
        shared: number of these facts that the first run scored too.
        paired: whether both runs scored exactly the same facts. They are then compared fact by fact, and otherwise as
            independent samples.
        intervals_over: what the intervals of the edited model's scores resample: facts, batches, or facts within the
            same edits.
        differences_over: what the intervals of the differences from the first run resample; of two runs that divide the
            same facts differently, batches that no batch of either run crosses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    started: datetime
    facts: int
    shared: int
    paired: bool
    intervals_over: Resampled
    differences_over: Resampled


class Score(BaseModel):
    """A metric of a run, in percent.

    Attributes:
        interval: the value and its 95 % interval.
        difference: the difference from the first run; null for the first run, and if one of the two lacks the metric.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval: Interval
    difference: Interval | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def noise(self) -> bool | None:
        """Whether the interval of the difference contains zero."""
        return self.difference.holds_zero if self.difference else None


class Comparison(BaseModel):
    """Runs side by side, as ``--json`` prints it. Lists are in the order of ``runs``.

    An interval estimates how much a number would vary with another sample of as many facts (percentile bootstrap). If
    the facts of a batch share an edit, whole batches are resampled; with few batches, or for scores of the unedited
    model, single facts. With few facts an interval is too narrow, and if all facts agree its width is zero. Intervals
    are not corrected for multiple comparisons: if two runs do not differ, one of twenty metrics is expected to show a
    difference.

    Attributes:
        runs: the runs. The others are compared with the first.
        settings: the settings that differ, as MLflow shows them; null for a run without such a setting.
        scores: scores by phase and metric; null for a run that lacks the metric. ``before`` is left out if it
            is the same for all runs.
        means: the metrics that are harmonic means of others.
        drift: measures of the edited models' drift on held-out text; null for a run that was not measured. Runs with
            another corpus or other token counts may be measured on another text.
        abilities: general abilities of the edited models, in percent, and results of lm-eval, in its units; null for a
            run without them. Runs may have asked different examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: list[ComparedRun]
    settings: dict[str, list[str | None]]
    scores: dict[str, dict[str, list[Score | None]]]
    means: list[str]
    drift: dict[str, list[float | None]]
    abilities: dict[str, list[float | None]] = {}


def scored(run: PastRun) -> ScoredRun:
    """The stored scores of ``run``.

    Raises:
        InputError: it has none, or has metrics that this version of Factsmith does not know.
    """
    if not any(name.startswith(_AFTER) for name in run.metrics):
        raise InputError(
            f"Run {run.id} has no scores to compare.",
            got=f"{run.name}, {run.status}",
            expected="a run with scores: one of run or evaluate, a cell of sweep, a trial of tune",
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
        drift={name.removeprefix(DRIFT): value for name, value in run.metrics.items() if name.startswith(DRIFT)},
        abilities={
            name.removeprefix(_AFTER): value
            for name, value in run.metrics.items()
            if name.startswith(_AFTER) and name.removeprefix(_AFTER) not in metrics
        },
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
                intervals_over=run.values["after"].resampling.over,
                differences_over=resampled_together(first.values["after"], run.values["after"]),
            )
            for run in runs
        ],
        settings={name: values for name, values in settings.items() if len(set(values)) > 1},
        scores={phase: _scores(runs, phase) for phase in PHASES if phase == "after" or before_differs},
        drift=_side_by_side([run.drift for run in runs]),
        abilities=_side_by_side([run.abilities for run in runs]),
        means=list(dict.fromkeys(name for run in runs for name in run.values["after"].means)),
    )


def _side_by_side(by_run: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """The numbers of all runs under each name."""
    names = sorted({name for numbers in by_run for name in numbers})
    return {name: [numbers.get(name) for numbers in by_run] for name in names}


def _scores(runs: Sequence[ScoredRun], phase: str) -> dict[str, list[Score | None]]:
    values = [run.values[phase] for run in runs]
    found = [intervals(one) for one in values]
    moved = [{}, *(differences(values[0], one) for one in values[1:])]
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return {
        name: [
            Score(interval=interval[name], difference=difference.get(name)) if name in interval else None
            for interval, difference in zip(found, moved, strict=True)
        ]
        for name in names
    }


def _same(first: RecordValues, other: RecordValues) -> bool:
    """Whether both have the same metrics. The last bits of a mean depend on the order of the facts."""
    one, two = first.summary(), other.summary()
    return one.keys() == two.keys() and all(
        (value is None) == (two[name] is None) and math.isclose(value or 0, two[name] or 0, abs_tol=_LAST_BITS)
        for name, value in one.items()
    )
