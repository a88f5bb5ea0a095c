"""Stage ``keys``: the corpus's keys at every edited layer, in shards that serve every smaller token count too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.keys import KeyShardWriter, read_keys
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.artifacts.store import Artifact
from factsmith.tasks.bench import Bench
from factsmith.tasks.model import ModelName
from factsmith.tasks.models.key_stream import NonFiniteKeysError, block_keys
from factsmith.tasks.progress import work
from factsmith.tasks.stage import Outcome, stage
from factsmith.tasks.tokens import TokenStream

__all__ = ["KeyStream", "corpus_tokens", "keys", "shard_rows"]

_SHARD_ROWS = 4096


def corpus_tokens(bench: Bench) -> int:
    """Tokens that C0 is the mean of."""
    settings = bench.settings.corpus
    return settings.tokens or math.ceil(settings.dynamic_multiplier * bench.checkpoint.key_width)


def shard_rows(key_width: int) -> int:
    """Rows of a shard: the multiple of d_k nearest to 4,096.

    A whole dynamic multiplier then wastes little, and a shard is large beside what it costs to publish one.
    """
    return key_width * max(1, round(_SHARD_ROWS / key_width))


@dataclass(frozen=True)
class KeyStream:
    """Keys of a token stream.

    Attributes:
        series: of the shards of all layers.
        shards: of each edited layer, in order.
    """

    series: Series
    shards: dict[int, list[Artifact]]

    def rows(self, layer: int, count: int) -> Iterator[tuple[Artifact, np.ndarray]]:
        """The first ``count`` rows of a layer, shard by shard."""
        for shard in self.shards[layer]:
            start = shard.key["start"]
            if start >= count:
                return
            yield shard, read_keys(shard, 0, min(count, shard.key["stop"]) - start)


@stage("keys")
def keys(bench: Bench, model: ModelName, stream: TokenStream, wanted: int) -> Outcome[KeyStream]:
    """Collect keys until every edited layer has ``wanted`` rows.

    One pass of the base model gives the keys of all layers that lack them, stopped at the last of those. A shard is
    published when it is full, so a killed process goes on after the last one.

    Raises:
        InputError: a key is NaN, infinite, or too large for the stored dtype; says in which layer.
    """
    width = bench.checkpoint.key_width
    series = Series(
        "keys",
        1,
        {"key_dtype": bench.settings.corpus.key_dtype, **model.parameters},
        {**model.inputs, "tokens": stream.series.digest},
    )
    rows = shard_rows(width)
    spans = [(start, min(start + rows, stream.count)) for start in range(0, wanted, rows)]
    total = spans[-1][1]
    with work("keys", total) as advance:
        missing = [span for span in spans if _absent(bench, series, span)]
        built = 0
        advance(total - sum(stop - start for start, stop in missing))
        if missing:
            with bench.store.lock(series.digest):
                built = _collect(bench, stream, series, missing, advance)
    shards = {layer: [bench.store.get(_recipe(series, layer, span)) for span in spans] for layer in bench.layers}
    size = sum(shard.manifest.size for of_layer in shards.values() for shard in of_layer)
    return Outcome(
        KeyStream(series, shards),
        series.address,
        built > 0,
        {"tokens": total, "tokens_built": built, "bytes": size},
    )


def _recipe(series: Series, layer: int, span: tuple[int, int]) -> Recipe:
    return series.member(layer=layer, start=span[0], stop=span[1])


def _absent(bench: Bench, series: Series, span: tuple[int, int]) -> dict[int, Recipe]:
    """Recipes of the layers that have no shard of these rows."""
    recipes = {layer: _recipe(series, layer, span) for layer in bench.layers}
    return {layer: recipe for layer, recipe in recipes.items() if bench.store.find(recipe) is None}


def _collect(
    bench: Bench,
    stream: TokenStream,
    series: Series,
    spans: Sequence[tuple[int, int]],
    advance: Callable[[int], None],
) -> int:
    """Build the shards of ``spans``, one after the other, for every layer that lacks one; gives the rows it built."""
    built = 0
    reader = _Reader(bench, stream)
    dtype = np.dtype(bench.settings.corpus.key_dtype)
    width = bench.checkpoint.key_width
    for span in spans:
        rows = span[1] - span[0]
        absent = _absent(bench, series, span)  # another process may have built some meanwhile
        with ExitStack() as drafts:
            writers: dict[int, KeyShardWriter] = {}
            for layer, recipe in absent.items():
                draft = drafts.enter_context(bench.store.draft(recipe))
                draft.summary = {"layer": layer, "rows": rows, "width": width}
                draft.made = bench.made
                draft.read_from(*reader.sources(span))
                writers[layer] = KeyShardWriter(draft.path, rows=rows, width=width, dtype=dtype)
            if writers:
                for unit in reader.rows(span, sorted(writers)):
                    for layer, writer in writers.items():
                        writer.append(_stored(unit[layer], dtype, layer))
                for writer in writers.values():
                    writer.check_complete()
                built += rows
        advance(rows)
    return built


class _Reader:
    """Runs the corpus through the model, unit by unit.

    A unit is a fixed run of blocks, whichever rows are asked for. So a row is computed in the same passes, to the
    same bits, whether its shard was collected first, later, or after a kill.
    """

    def __init__(self, bench: Bench, stream: TokenStream) -> None:
        self._bench = bench
        self._stream = stream
        self._last: tuple[tuple[int, int], dict[int, Tensor]] | None = None

    def sources(self, span: tuple[int, int]) -> list[Artifact]:
        """The token shards that hold these rows."""
        start, stop = span
        return [
            shard for shard in self._stream.shards if shard.summary["start"] < stop and shard.summary["stop"] > start
        ]

    def rows(self, span: tuple[int, int], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Keys of the rows of ``span`` at ``layers``, in order, a unit at a time."""
        start, stop = span
        most_tokens = self._bench.settings.runtime.tokens_per_pass
        blocks_each = max(1, most_tokens // self._bench.settings.corpus.block_length)
        for shard in self.sources(span):
            blocks = self._stream.blocks(shard)
            first = shard.summary["start"]
            for number in range(0, len(blocks), blocks_each):
                unit = blocks[number : number + blocks_each]
                last = first + sum(map(len, unit))
                if first < stop and last > start:
                    found = self._unit((shard.summary["start"], number), unit, layers, most_tokens)
                    yield {layer: found[layer][max(0, start - first) : stop - first] for layer in layers}
                first = last

    def _unit(
        self, name: tuple[int, int], unit: list[list[int]], layers: Sequence[int], most_tokens: int
    ) -> dict[int, Tensor]:
        # A unit that straddles two shards is still here from the first of them.
        if self._last is None or self._last[0] != name or not set(layers) <= set(self._last[1]):
            try:
                found = block_keys(self._bench.decoder, unit, layers, most_tokens=most_tokens)
            except NonFiniteKeysError as error:
                raise InputError(
                    f"Layer {error.layer} of {self._bench.settings.model.name} gives keys that are NaN or infinite.",
                    remedy="run the model in a wider dtype (model.dtype=float32)",
                ) from None
            self._last = name, found
        return self._last[1]


def _stored(rows: Tensor, dtype: np.dtype, layer: int) -> np.ndarray:
    """Rows in the dtype they are stored in.

    Raises:
        InputError: float16 cannot hold one of them.
    """
    array: np.ndarray = rows.to(torch.float32).numpy()
    if dtype == np.float32:
        return array
    largest = float(np.abs(array).max(initial=0))
    most = float(np.finfo(dtype).max)
    if largest > most:
        raise InputError(
            f"Keys of layer {layer} do not fit float16.",
            got=f"a value of {largest:.6g}",
            expected=f"at most {most:.6g}",
            remedy="set corpus.key_dtype=float32",
        )
    return array.astype(dtype)
