"""What records' metrics come to, and how far another draw of records could move it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from factsmith.tasks.evaluation.family import MetricFamily

__all__ = ["DRAWS", "PHASES", "Interval", "RecordValues", "differences", "intervals", "record_values"]

PHASES = ("before", "after")
"""Of a run: the unedited model's scores, and the edited one's."""

DRAWS = 2000
"""Bootstrap samples of an interval."""

_DRAWN_AT_ONCE = 4_000_000

_ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A number, and where 95 % of its bootstrap samples lie.

    Attributes:
        value: what the records come to.
        low: end of the interval.
        high: the other.
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
        records: their names, in order.
        metrics: names of the columns.
        values: (records, metrics) float64; NaN for what a record's prompts do not tell.
        means: harmonic means by name, and the metrics they are of.
    """

    records: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Tensor
    means: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, table: pa.Table, families: Sequence[MetricFamily]) -> RecordValues:
        """From ``record``, ``metric`` and ``value`` (1 is all), as ``MetricFamily.by_record`` gives them."""
        means = dict(family.mean for family in families if family.mean)
        metrics = [name for family in families for name in family.metrics if name not in means]
        records = list(dict.fromkeys(table["record"].to_pylist()))
        row = {name: place for place, name in enumerate(records)}
        column = {name: place for place, name in enumerate(metrics)}
        values = torch.full((len(records), len(metrics)), torch.nan, dtype=torch.float64)
        for record, metric, value in zip(
            *(table[name].to_pylist() for name in ("record", "metric", "value")), strict=True
        ):
            values[row[record], column[metric]] = 100 * value
        return cls(tuple(records), tuple(metrics), values, means)

    def summary(self) -> dict[str, float | None]:
        """The mean of each metric over the records that tell it, and harmonic means; ``None`` for what none tells."""
        found = self._summed(torch.ones(1, len(self.records), dtype=torch.float64))
        return {name: None if column.isnan().all() else float(column) for name, column in found.items()}

    def drawn(self, seed: int) -> dict[str, Tensor]:
        """(DRAWS,) of each metric and harmonic mean: what as many records, drawn from these with replacement, come to.

        The same seed draws the same places: samples of two runs on the same records are paired.
        [Efron and Tibshirani 1993, chapter 6]
        """
        count = len(self.records)
        generator = torch.Generator().manual_seed(seed)
        at_once = max(1, _DRAWN_AT_ONCE // max(1, count))
        parts = []
        for first in range(0, DRAWS, at_once):
            samples = min(at_once, DRAWS - first)
            drawn = torch.randint(count, (samples, count), generator=generator)
            times = torch.zeros(samples, count, dtype=torch.float64)
            parts.append(self._summed(times.scatter_add_(1, drawn, torch.ones_like(times))))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def ordered(self, records: Sequence[str]) -> RecordValues:
        """The same values, in the order of ``records``."""
        row = {name: place for place, name in enumerate(self.records)}
        return replace(self, records=tuple(records), values=self.values[[row[name] for name in records]])

    def _summed(self, times: Tensor) -> dict[str, Tensor]:
        """Metrics when each record counts ``times`` (samples, records)."""
        known = self.values.isfinite().double()
        means = (times @ self.values.nan_to_num()) / (times @ known)
        found = {name: means[:, place] for place, name in enumerate(self.metrics)}
        for name, parts in self.means.items():
            found[name] = _harmonic_mean(torch.stack([found[part] for part in parts]))
        return found


def record_values(table: pa.Table, phase: str, families: Sequence[MetricFamily]) -> RecordValues:
    """The rows of an evaluation's records that are of one phase, as numbers."""
    return RecordValues.of(table.filter(pc.equal(table["phase"], phase)), families)


def _harmonic_mean(parts: Tensor) -> Tensor:
    """Of (parts, samples); 0 where a part is 0, NaN where one is not known."""
    return len(parts) / (1 / parts).sum(0)


def intervals(values: RecordValues, *, seed: int = 0) -> dict[str, Interval]:
    """Each metric that the records tell, with its interval (percentile bootstrap over records)."""
    samples = values.drawn(seed)
    return {name: _interval(value, samples[name]) for name, value in values.summary().items() if value is not None}


def differences(first: RecordValues, second: RecordValues, *, seed: int = 0) -> dict[str, Interval]:
    """How much more ``second`` comes to than ``first``, for each metric that both tell.

    Runs on the same records are compared record by record: what makes a record hard is then no noise. Runs on
    different ones are drawn independently.
    """
    same = set(first.records) == set(second.records)
    if same:
        second = second.ordered(first.records)
    before, after = first.summary(), second.summary()
    one, other = first.drawn(seed), second.drawn(seed if same else seed + 1)
    found = {}
    for name, value in before.items():
        if value is not None and (more := after.get(name)) is not None:
            found[name] = _interval(more - value, other[name] - one[name])
    return found


def _interval(value: float, samples: Tensor) -> Interval:
    # A sample of which no record tells the metric says nothing.
    known = samples[samples.isfinite()]
    low, high = known.quantile(torch.tensor(_ENDS, dtype=known.dtype)).tolist()
    return Interval(value, low, high)
