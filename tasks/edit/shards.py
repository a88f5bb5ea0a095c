"""What is kept of a sequence: its batches in shards, and how a run finds those that it begins with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from factsmith.artifacts.formats import load_table, load_tensors
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.store import Artifact, Store
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.sequence import Step
from factsmith.tasks.edit.stage import fact_digests
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["FACTS", "MEASURES", "STEPS", "Stretch", "histories", "kept_batches"]

STEPS = "steps.safetensors"
"""Holds ``N.layer.L.left`` (d_out, B), ``right`` and ``key`` (d_in, B), float64, of batch N and layer L."""

MEASURES = "measures.parquet"
"""One row a (batch, layer): ``edits`` written so far, and what ``LayerMeasures`` says of them."""

FACTS = "facts.parquet"
"""One row a fact: ``edits`` written with its batch, and what ``FactMeasures`` says of it."""


@dataclass(frozen=True)
class Stretch:
    """Batches of a run's sequence that a shard holds; it may hold others, of a sequence that went on differently.

    Attributes:
        shard: that holds them.
        start: batches before the first of them.
        stop: the number of the last one.
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
        """Those of table ``name``, ``MEASURES`` or ``FACTS``, that are of batches up to number ``last``."""
        table = load_table(self.shard.path / name)
        stop = min(self.stop, last)
        return table.filter(pc.and_(pc.greater(table["batch"], self.start), pc.less_equal(table["batch"], stop)))


def histories(bench: Bench) -> list[str]:
    """Of each batch of a run, a digest of its facts and of all that are written before them."""
    facts = map(fact_digests, bench.batches)
    return list(itertools.accumulate(facts, lambda before, batch: digest_of([before, batch]), initial=""))[1:]


def kept_batches(store: Store, series: Series, wanted: Sequence[str]) -> list[Stretch]:
    """The batches that a run's sequence, by its ``histories``, begins with and shards hold, stretch after stretch."""
    there = []
    for shard in store.members(series):
        start = shard.key["start"]
        pairs = zip(shard.key["batches"], wanted[start:], strict=False)
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        there.append(Stretch(shard, start, start + sum(1 for _ in common)))
    found: list[Stretch] = []
    reached = 0
    while longer := [one for one in there if one.start <= reached < one.stop]:
        longest = max(longer, key=lambda one: one.stop)
        found.append(Stretch(longest.shard, reached, longest.stop))
        reached = longest.stop
    return found


def _step(tensors: Mapping[str, Tensor], number: int, layers: Sequence[int]) -> Step:
    names = {layer: f"{number}.layer.{layer}" for layer in layers}
    deltas = {layer: LowRankDelta(tensors[f"{name}.left"], tensors[f"{name}.right"]) for layer, name in names.items()}
    return Step(deltas, {layer: tensors[f"{name}.key"] for layer, name in names.items() if f"{name}.key" in tensors})
