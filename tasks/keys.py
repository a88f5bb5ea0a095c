"""Stage ``keys``: the corpus's keys at every edited layer, in shards that serve every smaller token count too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.keys import KeyShardWriter, read_keys
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.bench import Bench
from factsmith.tasks.model import ModelName
from factsmith.tasks.models.key_stream import NonFiniteKeysError, block_keys
from factsmith.tasks.progress import work
from factsmith.tasks.stage import Outcome, stage
from factsmith.tasks.tokens import TokenStream

__all__ = ["KeyStream", "keys", "shard_rows"]

_SHARD_ROWS = 4096


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
        {"key_dtype": bench.settings.corpus.key_dtype, "width": width, **model.parameters},
        {**model.inputs, "tokens": stream.series.digest},
    )
    rows = shard_rows(width)
    ranges = [(start, min(start + rows, stream.count)) for start in range(0, wanted, rows)]
    found: dict[int, list[Artifact]] = {layer: [] for layer in bench.layers}
    built_rows = 0
    collector = _Collector(bench, stream)
    with work("keys", ranges[-1][1]) as advance:
        for start, stop in ranges:
            recipes = {layer: series.member(layer=layer, start=start, stop=stop) for layer in bench.layers}
            shards = {layer: bench.store.find(recipe) for layer, recipe in recipes.items()}
            if not all(shards.values()):
                with bench.store.lock(series.digest):
                    missing = {layer: r for layer, r in recipes.items() if bench.store.find(r) is None}
                    if missing:
                        with ExitStack() as drafts:
                            opened = {layer: drafts.enter_context(bench.store.draft(r)) for layer, r in missing.items()}
                            collector.write(opened, start, stop)
                            built_rows += stop - start
                shards = {layer: bench.store.get(recipe) for layer, recipe in recipes.items()}
            for layer, shard in shards.items():
                assert shard is not None
                found[layer].append(shard)
            advance(stop - start)
    size = sum(shard.manifest.bytes for shards in found.values() for shard in shards)
    return Outcome(
        KeyStream(series, found),
        series.address,
        built_rows > 0,
        {"tokens": ranges[-1][1], "tokens_built": built_rows, "bytes": size},
        {"shards": str(sum(map(len, found.values())))},
    )


class _Collector:
    """Runs the corpus through the model, unit by unit.

    A unit is a fixed run of blocks, whichever rows are asked for. So a row is computed in the same passes, to the
    same bits, whether its shard was collected first, later, or after a kill.
    """

    def __init__(self, bench: Bench, stream: TokenStream) -> None:
        self.bench = bench
        self.stream = stream
        self._last: tuple[tuple[int, int], dict[int, Tensor]] | None = None

    def write(self, drafts: dict[int, Draft], start: int, stop: int) -> None:
        """Fill the drafts of some layers with rows ``start`` to ``stop``."""
        dtype = np.dtype(self.bench.settings.corpus.key_dtype)
        width = self.bench.checkpoint.key_width
        with ExitStack() as open_writers:
            writers = {
                layer: open_writers.enter_context(
                    KeyShardWriter(draft.path, rows=stop - start, width=width, dtype=dtype)
                )
                for layer, draft in drafts.items()
            }
            for first, unit in self._units(start, stop, sorted(drafts)):
                for layer, writer in writers.items():
                    rows = unit[layer]
                    writer.append(_stored(rows[max(0, start - first) : stop - first], dtype, layer))
        for layer, draft in drafts.items():
            draft.summary = {"layer": layer, "rows": stop - start, "width": width, "start": start}
            draft.made = self.bench.made
            draft.read_from(*self._shards(start, stop))

    def _shards(self, start: int, stop: int) -> list[Artifact]:
        return [
            shard for shard in self.stream.shards if shard.summary["start"] < stop and shard.summary["stop"] > start
        ]

    def _units(self, start: int, stop: int, layers: Sequence[int]) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Position of its first row and keys, for every unit that overlaps ``start`` to ``stop``."""
        most_tokens = self.bench.settings.runtime.tokens_per_pass
        size = max(1, most_tokens // self.bench.settings.corpus.block_length)
        for shard in self._shards(start, stop):
            blocks = self.stream.blocks(shard)
            position = shard.summary["start"]
            for number, first in enumerate(range(0, len(blocks), size)):
                unit = blocks[first : first + size]
                end = position + sum(map(len, unit))
                if position < stop and end > start:
                    name = (shard.summary["start"], number)
                    # A unit that straddles two shards is still here from the first of them.
                    if self._last is None or self._last[0] != name or not set(layers) <= set(self._last[1]):
                        self._last = name, self._compute(unit, layers, most_tokens)
                    yield position, self._last[1]
                position = end

    def _compute(self, unit: list[list[int]], layers: Sequence[int], most_tokens: int) -> dict[int, Tensor]:
        try:
            return block_keys(self.bench.decoder, unit, layers, most_tokens=most_tokens)
        except NonFiniteKeysError as error:
            raise InputError(
                f"Layer {error.layer} of {self.bench.settings.model.name} gives keys that are NaN or infinite.",
                remedy="run the model in a wider dtype (model.dtype=float32)",
            ) from None


def _stored(rows: Tensor, dtype: np.dtype, layer: int) -> np.ndarray:
    """Rows in the dtype they are stored in.

    Raises:
        InputError: float16 cannot hold one of them.
    """
    array = rows.to(torch.float32).numpy()
    if dtype == np.float32:
        return array
    largest = float(np.abs(array).max(initial=0))
    if largest > np.finfo(dtype).max:
        raise InputError(
            f"Keys of layer {layer} do not fit float16.",
            got=f"a value of {largest:.6g}",
            expected=f"at most {np.finfo(dtype).max:.6g}",
            remedy="set corpus.key_dtype=float32",
        )
    return array.astype(dtype)


def corpus_tokens(bench: Bench) -> int:
    """Tokens that C0 is the mean of."""
    settings = bench.settings.corpus
    return settings.tokens or math.ceil(settings.dynamic_multiplier * bench.checkpoint.key_width)
