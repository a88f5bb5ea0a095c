"""Keys of a token stream in the order of its rows, whoever is to keep them or add them up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.tasks.corpus.stage import TokenStream
from factsmith.tasks.keys.block_keys import NonFiniteKeysError, block_keys
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.workspace import Bench

__all__ = [
    "KeyReader",
    "absent_shards",
    "corpus_tokens",
    "key_series",
    "key_spans",
    "shard_recipe",
    "shard_rows",
    "spare_tokens",
    "token_steps",
    "useful_tokens",
]

_SHARD_ROWS = 4096


def token_steps(bench: Bench, most: int | None = None) -> list[int]:
    """Token counts whose keys may say what must stay, ascending: the one that is given, or those to try.

    They are those C0 is the mean of, or a low-rank model's samples; 0 if no keys are read.

    Args:
        bench: of the run.
        most: tokens that the corpus has; counts that are not to be had from it are left out.
    """
    method = bench.settings.method
    if method.reads != "corpus":
        return [method.low_rank.n_samples if method.reads == "samples" else 0]
    spare = spare_tokens(bench)
    return [count for count in _covariance_steps(bench) if most is None or count + spare <= most]


def _covariance_steps(bench: Bench) -> list[int]:
    settings, width = bench.settings.corpus, bench.checkpoint.key_width
    return [settings.tokens] if settings.tokens else [math.ceil(one * width) for one in settings.multipliers]


def spare_tokens(bench: Bench) -> int:
    """Tokens behind those of C0 that it takes to find their number; none where it is given."""
    return bench.settings.corpus.auto.held_out if bench.settings.finds_tokens else 0


def corpus_tokens(bench: Bench) -> int:
    """Tokens that are read for what must stay; at most, where their number is to be found."""
    return token_steps(bench)[-1]


def tokens_of_any_method(bench: Bench) -> int:
    """Tokens that would be read by the method that reads most of all, with the settings that there are."""
    return max(_covariance_steps(bench)[-1], bench.settings.method.low_rank.n_samples)


def shard_rows(key_width: int) -> int:
    """Rows of a shard: the multiple of d_k nearest to 4,096.

    A whole dynamic multiplier then wastes little, and a shard is large beside what it costs to publish one.
    """
    return key_width * max(1, round(_SHARD_ROWS / key_width))


def useful_tokens(bench: Bench, wanted: int) -> int:
    """Tokens that a run of ``wanted`` reads: whole shards of keys where they are kept."""
    if not bench.settings.corpus.keep_keys:
        return wanted
    rows = shard_rows(bench.checkpoint.key_width)
    return -(-wanted // rows) * rows


def key_spans(key_width: int, wanted: int, most: int) -> list[tuple[int, int]]:
    """First row and end of every shard that ``wanted`` rows need, of a stream that has ``most``."""
    rows = shard_rows(key_width)
    return [(start, min(start + rows, most)) for start in range(0, wanted, rows)]


def key_series(bench: Bench, model: ModelName, tokens: str) -> Series:
    """The keys of a token series, by its digest; names them whether they are kept or not."""
    return Series(
        "keys",
        1,
        {"key_dtype": bench.settings.corpus.key_dtype, **model.parameters},
        {**model.inputs, "tokens": tokens},
    )


def shard_recipe(series: Series, layer: int, span: tuple[int, int]) -> Recipe:
    """The rows of ``span`` at one layer."""
    return series.member(layer=layer, start=span[0], stop=span[1])


def absent_shards(bench: Bench, series: Series, span: tuple[int, int]) -> dict[int, Recipe]:
    """Recipes of the layers that have no shard of these rows."""
    recipes = {layer: shard_recipe(series, layer, span) for layer in bench.layers}
    return {layer: recipe for layer, recipe in recipes.items() if bench.store.find(recipe) is None}


class KeyReader:
    """Runs the corpus through the model, unit by unit.

    A unit is a fixed run of blocks, whichever rows are asked for. So a row is computed in the same passes, to the
    same bits, whether its shard was collected first, later, or after a kill.
    """

    def __init__(self, bench: Bench, stream: TokenStream) -> None:
        self._bench = bench
        self._stream = stream
        self._dtype: torch.dtype = getattr(torch, bench.settings.corpus.key_dtype)
        self._last: tuple[tuple[int, int], dict[int, Tensor]] | None = None

    def rows(self, span: tuple[int, int], layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Keys (n, d_k) of the rows of ``span`` at ``layers``, in order, in ``corpus.key_dtype``, a unit at a time.

        Raises:
            InputError: a key is NaN, infinite, or too large for ``corpus.key_dtype``; says in which layer.
        """
        start, stop = span
        most_tokens = self._bench.settings.runtime.tokens_per_pass
        blocks_each = max(1, most_tokens // self._bench.settings.corpus.block_length)
        for shard in self._stream.holding(span):
            blocks = self._stream.blocks(shard)
            first = shard.summary["start"]
            for number in range(0, len(blocks), blocks_each):
                unit = blocks[number : number + blocks_each]
                last = first + sum(map(len, unit))
                if first < stop and last > start:
                    found = self._unit((shard.summary["start"], number), unit, layers, most_tokens)
                    yield {
                        layer: self._stored(found[layer][max(0, start - first) : stop - first], layer)
                        for layer in layers
                    }
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

    def _stored(self, rows: Tensor, layer: int) -> Tensor:
        """Rows in the dtype they are stored in, which is also what is added up when none are stored."""
        rows = rows.to(torch.float32)
        if self._dtype == torch.float32:
            return rows
        largest = float(rows.abs().max()) if rows.numel() else 0.0
        most = torch.finfo(self._dtype).max
        if largest > most:
            raise InputError(
                f"Keys of layer {layer} do not fit float16.",
                got=f"a value of {largest:.6g}",
                expected=f"at most {most:.6g}",
                remedy="set corpus.key_dtype=float32",
            )
        return rows.to(self._dtype)
