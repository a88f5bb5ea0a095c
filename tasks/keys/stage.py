"""Stage ``keys``: the corpus's keys at every edited layer, in shards that serve every smaller token count too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from factsmith.artifacts.keys import KeyShardWriter, read_keys
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact
from factsmith.tasks.corpus.stage import TokenStream
from factsmith.tasks.keys.reader import KeyReader, absent_shards, key_series, key_spans, shard_recipe
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["KeyStream", "collect_keys", "keys"]


@dataclass(frozen=True)
class KeyStream:
    """Keys of a token stream.

    Attributes:
        series: of the shards of all layers.
        shards: of each edited layer, in order.
    """

    series: Series
    shards: dict[int, list[Artifact]]

    def rows(self, layer: int, stop: int, start: int = 0) -> Iterator[tuple[Artifact, np.ndarray]]:
        """The rows of a layer from ``start`` to before ``stop``, shard by shard."""
        for shard in self.shards[layer]:
            first, end = shard.key["start"], shard.key["stop"]
            if first < stop and end > start:
                yield shard, read_keys(shard, max(start - first, 0), min(stop, end) - first)


@stage("keys")
def keys(bench: Bench, model: ModelName, stream: TokenStream, wanted: int) -> Outcome[KeyStream]:
    """Collect keys until every edited layer has ``wanted`` rows.

    One pass of the base model gives the keys of all layers that lack them, stopped at the last of those. A shard is
    published when it is full, so a killed process goes on after the last one.

    Raises:
        InputError: a key is NaN, infinite, or too large for the stored dtype; says in which layer.
    """
    series = key_series(bench, model, stream.series.digest)
    collected, built = collect_keys(bench, series, stream, wanted, KeyReader(bench, stream))
    shards = [shard for of_layer in collected.shards.values() for shard in of_layer]
    return Outcome(
        collected,
        series.address,
        built > 0,
        {
            "tokens": max(shard.key["stop"] for shard in shards),
            "tokens_built": built,
            "bytes": sum(shard.manifest.size for shard in shards),
        },
    )


def collect_keys(
    bench: Bench, series: Series, stream: TokenStream, wanted: int, reader: KeyReader
) -> tuple[KeyStream, int]:
    """``wanted`` rows of every edited layer, and how many rows had to be built for it."""
    spans = key_spans(bench.checkpoint.key_width, wanted, stream.count)
    total = spans[-1][1]
    with work("keys", total) as advance:
        missing = [span for span in spans if absent_shards(bench, series, span)]
        built = 0
        advance(total - sum(stop - start for start, stop in missing))
        if missing:
            with bench.store.lock(series.digest):
                built = _collect(bench, stream, series, missing, reader, advance)
    shards = {layer: [bench.store.get(shard_recipe(series, layer, span)) for span in spans] for layer in bench.layers}
    return KeyStream(series, shards), built


def _collect(
    bench: Bench,
    stream: TokenStream,
    series: Series,
    spans: Sequence[tuple[int, int]],
    reader: KeyReader,
    advance: Callable[[int], None],
) -> int:
    """Build the shards of ``spans``, one after the other, for every layer that lacks one; gives the rows it built."""
    built = 0
    dtype = np.dtype(bench.settings.corpus.key_dtype)
    width = bench.checkpoint.key_width
    for span in spans:
        rows = span[1] - span[0]
        absent = absent_shards(bench, series, span)  # another process may have built some meanwhile
        with ExitStack() as drafts:
            writers: dict[int, KeyShardWriter] = {}
            for layer, recipe in absent.items():
                draft = drafts.enter_context(bench.store.draft(recipe))
                draft.summary = {"layer": layer, "rows": rows, "width": width}
                draft.made = bench.made
                draft.read_from(*stream.holding(span))
                writers[layer] = KeyShardWriter(draft.path, rows=rows, width=width, dtype=dtype)
            if writers:
                for unit in reader.rows(span, sorted(writers)):
                    for layer, writer in writers.items():
                        writer.append(unit[layer].numpy())
                for writer in writers.values():
                    writer.check_complete()
                built += rows
        advance(rows)
    return built
