"""Metrics averaged over records, and how much another sample of facts or batches could change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.resampling import Resampled, Resampling, resampling

__all__ = [
    "DRAWS",
    "FIRST",
    "PHASES",
    "Interval",
    "RecordValues",
    "differences",
    "intervals",
    "record_values",
    "resampled_together",
]

PHASES = ("before", "after")
"""The phases of a run: scores of the unedited model, and scores of the edited one."""

FIRST = 100
"""Number of facts of a sequence, the first ones, whose scores are also shown apart."""

DRAWS = 2000
"""Number of bootstrap samples for an interval."""

_DRAWN_AT_ONCE = 4_000_000
"""Most records that are drawn together, over several bootstrap samples. It limits memory."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, from bootstrap samples.

    Attributes:
        value: value on the records themselves.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class RecordValues:
    """The metrics of records, in percent.

    Attributes:
        records: digests of the records, one for each row of ``values``.
        metrics: names of the metrics, one for each column of ``values``.
        values: (records, metrics) float64; NaN for a metric that a record's prompts do not give.
        means: metrics that each harmonic mean combines.
        batches: number of the batch that each record was written with; ``None`` for scores of the unedited model.
    """

    records: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Array
    means: Mapping[str, tuple[str, ...]]
    batches: tuple[int, ...] | None = None

    @classmethod
    def of(cls, table: pa.Table, families: Sequence[MetricFamily]) -> RecordValues:
        """Values from a table of ``record``, ``metric`` and ``value``, as ``MetricFamily.by_record`` returns it."""
        columns = (table[name].to_pylist() for name in ("record", "metric", "value"))
        return cls._of_rows(list(zip(*columns, strict=True)), families)

    @classmethod
    def _of_rows(
        cls,
        rows: Sequence[tuple[str, str, float]],
        families: Sequence[MetricFamily],
        batch_of: Mapping[str, int] | None = None,
    ) -> RecordValues:
        """Values from triples of record, metric and value, and from the batch of each record."""
        means = dict(family.mean for family in families if family.mean)
        metrics = [name for family in families for name in family.metrics if name not in means]
        records = list(dict.fromkeys(record for record, _, _ in rows))
        row = {name: place for place, name in enumerate(records)}
        column = {name: place for place, name in enumerate(metrics)}
        values = np.full((len(records), len(metrics)), np.nan)
        for record, metric, value in rows:
            values[row[record], column[metric]] = 100 * value
        batches = tuple(batch_of[record] for record in records) if batch_of else None
        return cls(tuple(records), tuple(metrics), values, means, batches)

    @property
    def counts(self) -> dict[str, int]:
        """The number of records that each metric rests on; for a harmonic mean, the fewest of its metrics."""
        found = dict(zip(self.metrics, np.isfinite(self.values).sum(0).tolist(), strict=True))
        return found | {name: min(found[part] for part in parts) for name, parts in self.means.items()}

    def summary(self) -> dict[str, float | None]:
        """The mean of each metric over the records that have it, and the harmonic means; ``None`` if none has it."""
        found = self._summed(np.ones((1, len(self.records))))
        return {name: None if np.isnan(column[0]) else float(column[0]) for name, column in found.items()}

    @property
    def resampling(self) -> Resampling:
        """What bootstrap samples are drawn from."""
        return resampling(len(self.records), self.batches)

    def drawn(self, seed: int, units: Resampling | None = None) -> dict[str, Array]:
        """(DRAWS,) bootstrap samples of each metric and harmonic mean.

        A sample is the mean over the records of as many ``units`` as there are, drawn with replacement. The same seed
        and units draw the same places, so that the samples of two runs on the same records are paired.
        [Efron and Tibshirani 1993, chapter 6; ``resampling.py`` for units of several records]

        Args:
            seed: seed of the draws.
            units: what is drawn; ``None`` for ``resampling``.
        """
        units = units or self.resampling
        count = units.count
        generator = np.random.default_rng(seed)
        at_once = max(1, _DRAWN_AT_ONCE // max(1, len(self.records)))
        parts = []
        for first in range(0, DRAWS, at_once):
            samples = min(at_once, DRAWS - first)
            drawn = generator.integers(count, size=(samples, count)) + count * np.arange(samples)[:, None]
            times = np.bincount(drawn.ravel(), minlength=samples * count).reshape(samples, count)
            parts.append(self._summed(times[:, units.unit].astype(np.float64)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def ordered(self, records: Sequence[str]) -> RecordValues:
        """The same values, with the records in the order of ``records``."""
        row = {name: place for place, name in enumerate(self.records)}
        places = [row[name] for name in records]
        batches = self.batches and tuple(self.batches[place] for place in places)
        return replace(self, records=tuple(records), values=self.values[places], batches=batches)

    def _summed(self, times: Array) -> dict[str, Array]:
        """(samples,) metrics and harmonic means in which each record counts ``times`` (samples, records)."""
        known = np.isfinite(self.values)
        with np.errstate(divide="ignore", invalid="ignore"):  # A metric that no drawn record has is NaN.
            means = (times @ np.where(known, self.values, 0)) / (times @ known.astype(np.float64))
            found = {name: means[:, place] for place, name in enumerate(self.metrics)}
            for name, parts in self.means.items():
                found[name] = _harmonic_mean(np.stack([found[part] for part in parts]))
        return found


def record_values(table: pa.Table, phase: str, families: Sequence[MetricFamily]) -> RecordValues:
    """The values of one phase, from the table of an evaluation's records."""
    columns = [table[name].to_pylist() for name in ("phase", "record", "metric", "value", "batch")]
    # Filtering in pyarrow would import pandas, which takes longer than all of this.
    rows = [one[1:] for one in zip(*columns, strict=True) if one[0] == phase]
    # A fact that several batches write counts once, with the batch that comes last.
    batches = {record: batch for record, _, _, batch in rows if batch is not None}
    return RecordValues._of_rows([row[:3] for row in rows], families, batches)


def _harmonic_mean(parts: Array) -> Array:
    """(samples,) harmonic means of (parts, samples); 0 if a part is 0, NaN if a part is not known."""
    mean: Array = len(parts) / (1 / parts).sum(0)
    return mean


def intervals(values: RecordValues, *, seed: int = 0) -> dict[str, Interval]:
    """Each metric that the records have, with its interval (percentile bootstrap over ``values.resampling``)."""
    samples, ends = values.drawn(seed), values.resampling.ends
    return {
        name: _interval(value, samples[name], ends) for name, value in values.summary().items() if value is not None
    }


def differences(first: RecordValues, second: RecordValues, *, seed: int = 0) -> dict[str, Interval]:
    """How much higher ``second`` is than ``first``, for each metric that both have.

    Runs on the same records are compared record by record, so that the difficulty of a record does not count as noise.
    The samples of both then hold the same batches. Runs on different records are drawn independently.
    """
    if set(first.records) == set(second.records):
        second = second.ordered(first.records)
        units = others = resampling(len(first.records), first.batches, second.batches)
        seeds = seed, seed
    else:
        units, others = first.resampling, second.resampling
        seeds = seed, seed + 1
    before, after = first.summary(), second.summary()
    one, other = first.drawn(seeds[0], units), second.drawn(seeds[1], others)
    ends = min(units.ends, others.ends)
    found = {}
    for name, value in before.items():
        if value is not None and (more := after.get(name)) is not None:
            found[name] = _interval(more - value, other[name] - one[name], ends)
    return found


def resampled_together(first: RecordValues, second: RecordValues) -> Resampled:
    """What ``differences`` resamples. Of the units of runs on different records, the one that says least."""
    if set(first.records) == set(second.records):
        return resampling(len(first.records), first.batches, second.ordered(first.records).batches).over
    found = {first.resampling.over, second.resampling.over}
    order: tuple[Resampled, ...] = ("facts within edits", "batches", "facts")
    return next(one for one in order if one in found)


def _interval(value: float, samples: Array, ends: tuple[float, float]) -> Interval:
    # A sample in which no record has the metric gives no value.
    low, high = np.quantile(samples[np.isfinite(samples)], ends).tolist()
    return Interval(value, low, high)
