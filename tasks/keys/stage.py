"""Stage ``keys``: the keys of every edited layer, in shards that serve every smaller token count too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.keys import KeyShardWriter, read_keys
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.artifacts.store import Store
from factsmith.tasks.corpus.stage import TokenStream
from factsmith.tasks.engine.pool import Pool
from factsmith.tasks.engine.workers_stage import Worker, workers
from factsmith.tasks.keys.reader import KeyReader
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = [
    "KeySource",
    "KeyStream",
    "absent_shards",
    "collect_keys",
    "has_keys",
    "key_series",
    "key_spans",
    "keys",
    "shard_rows",
    "whole_shards",
]

_SHARD_ROWS = 4096

_PASSES_OF_A_SHARE = 4
"""Fewest passes that a worker makes at once. One of them may have to be made twice."""

_SHARES_OF_A_WORKER = 4
"""Shares for each worker, if there are keys enough, so that quick ones take more of them."""


@dataclass(frozen=True)
class KeySource:
    """Everything that determines the keys of a run.

    Attributes:
        model: the model.
        layers: the edited layers, ascending.
        tokens: the tokens of the corpus.
        dtype: data type of the stored keys.
    """

    model: Model
    layers: Sequence[int]
    tokens: TokenStream
    dtype: str

    @property
    def series(self) -> Series:
        """The series of the shards of all layers."""
        return key_series(self.model.fingerprint, self.tokens.series.digest, self.dtype)

    def without_keys(self) -> KeyStream:
        """The stream of these keys of which nothing is stored, for what has been made from them before."""
        return KeyStream(self.series, {layer: [] for layer in self.layers}, self.model.key_width, self.tokens)

    def reader(self, workspace: Workspace) -> KeyReader:
        """A reader that computes these keys with the model."""
        return KeyReader(
            self.model,
            self.tokens.shard_blocks,
            block_length=self.tokens.block_length,
            key_dtype=self.dtype,
            tokens_per_pass=self.model.limits.most_tokens,
            begin=workspace.limit_threads,
        )


@dataclass(frozen=True)
class KeyStream:
    """Stored keys of a token stream.

    Attributes:
        series: the series of the shards of all layers.
        shards: the shards of each edited layer, in order.
        width: d_k.
        tokens: the tokens of the corpus.
    """

    series: Series
    shards: dict[int, list[Artifact]]
    width: int
    tokens: TokenStream

    def rows(self, layer: int, stop: int, start: int = 0) -> Iterator[tuple[Artifact, np.ndarray]]:
        """The rows of a layer from ``start`` to before ``stop``, shard by shard."""
        for shard in self.shards[layer]:
            first, end = shard.key["start"], shard.key["stop"]
            if first < stop and end > start:
                yield shard, read_keys(shard, max(start - first, 0), min(stop, end) - first)


def key_series(model: Fingerprint, tokens: str, dtype: str) -> Series:
    """The series of the keys of a token series, given by its digest. It names the keys even if none are kept."""
    return Series("keys", 1, {"key_dtype": dtype, **model.parameters}, {**model.inputs, "tokens": tokens})


def shard_rows(width: int) -> int:
    """Rows of a shard: the multiple of d_k nearest to 4,096.

    Whole dynamic multipliers then waste few keys, and a shard is large compared with the cost of publishing it.
    """
    return width * max(1, round(_SHARD_ROWS / width))


def whole_shards(width: int, wanted: int) -> int:
    """Rows of the shards that hold ``wanted`` rows."""
    rows = shard_rows(width)
    return -(-wanted // rows) * rows


def key_spans(width: int, wanted: int, most: int) -> list[tuple[int, int]]:
    """Start and stop of every shard that holds some of the first ``wanted`` rows, in a stream of ``most`` rows."""
    rows = shard_rows(width)
    return [(start, min(start + rows, most)) for start in range(0, wanted, rows)]


def absent_shards(store: Store, series: Series, layers: Sequence[int], span: tuple[int, int]) -> dict[int, Recipe]:
    """The recipes of the layers whose shard of ``span`` is not in the store."""
    recipes = {layer: _shard_recipe(series, layer, span) for layer in layers}
    return {layer: recipe for layer, recipe in recipes.items() if store.find(recipe) is None}


def has_keys(store: Store, source: KeySource, wanted: int) -> bool:
    """Whether the store itself has ``wanted`` keys of every edited layer. They are not looked for elsewhere."""
    spans = key_spans(source.model.key_width, wanted, source.tokens.count)
    recipes = (_shard_recipe(source.series, layer, span) for span in spans for layer in source.layers)
    return all(store.at(store.place(recipe)) is not None for recipe in recipes)


def _shard_recipe(series: Series, layer: int, span: tuple[int, int]) -> Recipe:
    return series.member(layer=layer, start=span[0], stop=span[1])


@stage("keys")
def keys(workspace: Workspace, source: KeySource, wanted: int) -> Outcome[KeyStream]:
    """Collect keys until every edited layer has ``wanted`` rows.

    One pass of the unedited model gives the keys of all layers that lack them; it stops at the last of these layers. A
    shard is published as soon as it is full, so a killed process continues after the last one.

    Raises:
        InputError: a key is NaN, infinite, or too large for the data type; names the layer.
    """
    reader = source.reader(workspace)
    collected, built = collect_keys(workspace, source, wanted, reader)
    shards = [shard for of_layer in collected.shards.values() for shard in of_layer]
    return Outcome(
        collected,
        collected.series.address,
        built > 0,
        {
            "tokens": max(shard.key["stop"] for shard in shards),
            "tokens_built": built,
            "bytes": sum(shard.manifest.size for shard in shards),
        },
    )


def collect_keys(workspace: Workspace, source: KeySource, wanted: int, reader: KeyReader) -> tuple[KeyStream, int]:
    """Collect ``wanted`` rows of every edited layer. Also returns the number of rows that had to be built."""
    store, series, width = workspace.store, source.series, source.model.key_width
    spans = key_spans(width, wanted, source.tokens.count)
    total = spans[-1][1]
    with progress("keys", total) as advance:
        missing = [span for span in spans if absent_shards(store, series, source.layers, span)]
        built = 0
        advance(total - sum(stop - start for start, stop in missing))
        if missing:
            with store.lock(series.digest):
                pool = workers(workspace, source.model)
                if pool is None:
                    built = _build_shards(workspace, source, missing, reader, advance)
                else:
                    built = _share_shards(pool, source, missing, advance)
    shards = {layer: [store.get(_shard_recipe(series, layer, span)) for span in spans] for layer in source.layers}
    return KeyStream(series, shards, width, source.tokens), built


def _build_shards(
    workspace: Workspace,
    source: KeySource,
    spans: Sequence[tuple[int, int]],
    reader: KeyReader,
    advance: Callable[[int], None],
) -> int:
    """Build the shards of ``spans``, in order, for every layer that lacks one. Returns the number of rows built."""
    store, series, width = workspace.store, source.series, source.model.key_width
    dtype = np.dtype(source.dtype)
    built = 0
    # Another process may have built some while this one waited for the lock.
    for stretch in _stretches([(span, absent_shards(store, series, source.layers, span)) for span in spans]):
        whole, layers = (stretch[0][0][0], stretch[-1][0][1]), sorted(stretch[0][1])
        if not layers:
            advance(whole[1] - whole[0])
            continue
        with closing(reader.rows(whole, layers, cuts=[stop for (_, stop), _ in stretch])) as units:
            for span, absent in stretch:
                rows = span[1] - span[0]
                with ExitStack() as drafts:
                    writers: dict[int, KeyShardWriter] = {}
                    for layer, recipe in absent.items():
                        draft = drafts.enter_context(store.draft(recipe))
                        draft.summary = {"layer": layer, "rows": rows, "width": width}
                        draft.made = {**workspace.made, **source.model.made}
                        draft.read_from(*source.tokens.holding(span))
                        writers[layer] = KeyShardWriter(draft.path, rows=rows, width=width, dtype=dtype)
                    left = rows
                    while left:
                        unit = next(units)
                        for layer, writer in writers.items():
                            writer.append(unit[layer].numpy())
                        left -= len(unit[layers[0]])
                    for writer in writers.values():
                        writer.check_complete()
                built += rows
                advance(rows)
    return built


def _share_shards(
    pool: Pool, source: KeySource, spans: Sequence[tuple[int, int]], advance: Callable[[int], None]
) -> int:
    """Have workers build the shards of ``spans``. Returns the number of rows built.

    A worker takes several shards that follow each other, because a pass that holds keys of two shares is made twice.
    """
    least = _PASSES_OF_A_SHARE * pool.about["most_tokens"]
    total = sum(stop - start for start, stop in spans)
    shares = _shares(spans, max(least, total // (_SHARES_OF_A_WORKER * pool.size)))
    held = [_Held(source.layers, replace(source.tokens, shards=source.tokens.holding((one[0][0], one[-1][1]))),
                  source.dtype, one) for one in shares]  # fmt: skip
    return sum(pool.each(_build_share, held, advance))


@dataclass(frozen=True)
class _Held:
    """A worker's share: the spans of its shards, and what a ``KeySource`` has beside the model."""

    layers: Sequence[int]
    tokens: TokenStream
    dtype: str
    spans: Sequence[tuple[int, int]]


def _build_share(worker: Worker, share: _Held, advance: Callable[[int], None]) -> int:
    source = KeySource(worker.model, share.layers, share.tokens, share.dtype)
    # A worker that was given up may still be at it.
    with worker.workspace.store.lock(f"{source.series.digest}-{share.spans[0][0]}"):
        return _build_shards(worker.workspace, source, share.spans, source.reader(worker.workspace), advance)


def _shares(spans: Sequence[tuple[int, int]], rows: int) -> list[list[tuple[int, int]]]:
    """The spans in groups of ``rows`` rows or more that follow each other."""
    shares: list[list[tuple[int, int]]] = []
    for span in spans:
        if shares and shares[-1][-1][1] == span[0] and span[0] - shares[-1][0][0] < rows:
            shares[-1].append(span)
        else:
            shares.append([span])
    return shares


_Missing: TypeAlias = tuple[tuple[int, int], dict[int, Recipe]]
"""A span, and the recipes of the layers that lack its shard."""


def _stretches(missing: Iterable[_Missing]) -> list[list[_Missing]]:
    """Groups of spans that follow each other and lack the same layers. The units of a group can be read ahead."""
    stretches: list[list[_Missing]] = []
    for span, absent in missing:
        last = stretches[-1][-1] if stretches else None
        if last and last[0][1] == span[0] and last[1].keys() == absent.keys():
            stretches[-1].append((span, absent))
        else:
            stretches.append([(span, absent)])
    return stretches
