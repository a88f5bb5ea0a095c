"""Part of stage ``edit`` of a sequence: the shards of its steps, and how a run finds those that it starts with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.formats import load_table, load_tensors
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.store import Store
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.sequence import Step
from factsmith.tasks.edit.stage import SECONDS_WRITTEN, seconds_written
from factsmith.tasks.facts.batches import FactBatches, fact_digests

__all__ = ["FACTS", "MEASURES", "STEPS", "ShardRange", "batch_digests", "seconds_of", "stored_batches"]

STEPS = "steps.safetensors"
"""Holds ``N.layer.L.left`` (d_out, B), ``right`` and ``key`` (d_in, B), float64, of batch N and layer L."""

MEASURES = "measures.parquet"
"""One row per (batch, layer): ``edits`` written so far, and the columns of ``LayerMeasures``."""

FACTS = "facts.parquet"
"""One row per fact: ``edits`` written with its batch, and the columns of ``FactMeasures``."""


@dataclass(frozen=True)
class ShardRange:
    """The batches of a run's sequence that a shard holds. The shard may also hold batches of another sequence.

    Attributes:
        shard: the artifact.
        start: number of batches before the first of them.
        stop: number of batches up to the last of them.
    """

    shard: Artifact
    start: int
    stop: int

    def steps(self, layers: Sequence[int], device: str) -> Iterator[tuple[int, Step]]:
        """The batches, each with its number, counted from 1."""
        tensors = load_tensors(self.shard.path / STEPS, device)
        for number in range(self.start + 1, self.stop + 1):
            yield number, _step(tensors, number, layers)

    def rows(self, name: str, last: int) -> pa.Table:
        """The rows of table ``name`` (``MEASURES`` or ``FACTS``) of the batches up to number ``last``."""
        table = load_table(self.shard.path / name)
        stop = min(self.stop, last)
        return table.filter(pc.and_(pc.greater(table["batch"], self.start), pc.less_equal(table["batch"], stop)))


def batch_digests(batches: FactBatches) -> list[str]:
    """For each batch, a digest of its facts and of all facts written before them."""
    facts = map(fact_digests, batches.batches)
    return list(itertools.accumulate(facts, lambda before, batch: digest_of([before, batch]), initial=""))[1:]


def stored_batches(store: Store, series: Series, wanted: Sequence[str]) -> list[ShardRange]:
    """The shard ranges, in order, of the batches at the beginning of a run's sequence that the store holds.

    Args:
        store: the artifact store.
        series: the series of the sequence.
        wanted: the run's ``batch_digests``.
    """
    available = []
    for shard in store.members(series):
        start = shard.key["start"]
        pairs = zip(shard.key["batches"], wanted[start:], strict=False)
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        available.append(ShardRange(shard, start, start + sum(1 for _ in common)))
    found: list[ShardRange] = []
    reached = 0
    while longer := [one for one in available if one.start <= reached < one.stop]:
        longest = max(longer, key=lambda one: one.stop)
        found.append(ShardRange(longest.shard, reached, longest.stop))
        reached = longest.stop
    return found


def seconds_of(ranges: Sequence[ShardRange], number: int) -> dict[str, float]:
    """How long the first ``number`` batches took, for a manifest; empty if an earlier version wrote some of them."""
    shares = [(min(one.stop, number) - one.start) / one.shard.summary["batches"] for one in ranges]
    seconds = [seconds_written(one.shard) for one in ranges]
    if None in seconds:
        return {}
    return {SECONDS_WRITTEN: round(sum(share * (one or 0) for share, one in zip(shares, seconds, strict=True)), 3)}


def _step(tensors: Mapping[str, Tensor], number: int, layers: Sequence[int]) -> Step:
    names = {layer: f"{number}.layer.{layer}" for layer in layers}
    deltas = {layer: LowRankDelta(tensors[f"{name}.left"], tensors[f"{name}.right"]) for layer, name in names.items()}
    return Step(deltas, {layer: tensors[f"{name}.key"] for layer, name in names.items() if f"{name}.key" in tensors})
