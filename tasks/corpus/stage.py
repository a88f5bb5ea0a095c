"""Stage ``tokens``: the corpus as exact blocks of tokens, a series of shards that only ever grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.corpus.blocks import document_blocks
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["SHARD_TOKENS", "TokenStream", "corpus_too_small", "held_out_blocks", "reached", "token_series", "tokens"]

SHARD_TOKENS = 2**16
"""A shard is closed at the end of the document that brings it to this many tokens."""

SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("offset", pa.int32()),
        ("start", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
    ]
)
"""One row a block: its document's index in the source, where in the document its own tokens begin, and the position
of its first token in the stream."""


@dataclass(frozen=True)
class TokenStream:
    """Positions of the corpus in their order, as far as they have been tokenized.

    Attributes:
        series: of the shards.
        shards: in order.
    """

    series: Series
    shards: Sequence[Artifact]

    @property
    def count(self) -> int:
        """Positions tokenized so far."""
        return int(self.shards[-1].summary["stop"])

    def holding(self, span: tuple[int, int]) -> list[Artifact]:
        """The shards that hold the positions of ``span``, first one and end."""
        start, stop = span
        return [shard for shard in self.shards if shard.summary["start"] < stop and shard.summary["stop"] > start]

    def blocks(self, shard: Artifact) -> list[list[int]]:
        """Tokens of every block of a shard."""
        blocks: list[list[int]] = load_table(shard.path / "blocks.parquet")["tokens"].to_pylist()
        return blocks


def token_series(bench: Bench, model: ModelName) -> Series:
    """The corpus in tokens of ``model``."""
    settings = bench.settings.corpus
    return Series(
        "tokens",
        1,
        {
            "corpus": bench.corpus.recipe(),
            "block_length": settings.block_length,
            "blocks_per_document": settings.blocks_per_document,
            "shard_tokens": SHARD_TOKENS,
        },
        {"tokenizer": model.tokenizer},
    )


@stage("tokens")
def tokens(bench: Bench, model: ModelName, wanted: int, useful: int) -> Outcome[TokenStream]:
    """Tokenize until there are ``useful`` positions or the corpus ends.

    Args:
        bench: of the run.
        model: whose tokenizer.
        wanted: positions that the run cannot do without.
        useful: positions that it would use.

    Raises:
        InputError: the corpus ends before ``wanted``; says how many tokens it has.
    """
    with work("tokens", useful) as advance:
        stream, any_built = _grown(bench, model, wanted, useful, advance)
    if stream.count < wanted:
        raise corpus_too_small(bench, stream.count, wanted)
    metrics = {"tokens": stream.count, "bytes": sum(shard.manifest.size for shard in stream.shards)}
    return Outcome(stream, stream.series.address, any_built, metrics)


def held_out_blocks(bench: Bench, model: ModelName, first: int, most: int) -> tuple[list[Artifact], list[list[int]]]:
    """Blocks behind position ``first`` of the stream, of no document that reaches before it.

    Returns:
        The shards they are read from, and ``most`` blocks; fewer if the corpus ends before.
    """
    useful = first + 1
    while True:
        stream, _ = _grown(bench, model, first, useful)
        shards = stream.holding((max(0, first - 1), stream.count))
        table = pa.concat_tables([load_table(shard.path / "blocks.parquet") for shard in shards])
        begun = table.filter(pc.less(table["start"], first))["document"].to_pylist()[-1:]
        apart = pc.invert(pc.is_in(table["document"], value_set=pa.array(begun, pa.int64())))
        later = table.filter(pc.and_(pc.greater_equal(table["start"], first), apart))["tokens"].to_pylist()
        # A token alone predicts nothing.
        held_out = [tokens for tokens in later if len(tokens) > 1]
        if len(held_out) >= most or stream.shards[-1].summary["last"]:
            return shards, held_out[:most]
        useful = stream.count + 1


def reached(bench: Bench, model: ModelName, *positions: int) -> int:
    """The last of ``positions`` that the corpus goes beyond; the first of them all if it goes beyond none."""
    stream, _ = _grown(bench, model, 0, max(positions) + 1)
    return max((one for one in positions if one < stream.count), default=min(positions))


def _grown(
    bench: Bench, model: ModelName, wanted: int, useful: int, advance: Callable[[int], None] = lambda tokens: None
) -> tuple[TokenStream, bool]:
    """The stream with ``useful`` positions, or all that the corpus has, and whether a shard had to be built.

    Raises:
        InputError: a shard shows that the corpus ends before ``wanted``.
    """
    series = token_series(bench, model)
    shards: list[Artifact] = []
    any_built = False
    while not shards or (shards[-1].summary["stop"] < useful and not shards[-1].summary["last"]):
        before = shards[-1].summary if shards else {"stop": 0, "next_place": 0}

        def build(draft: Draft, before: dict[str, int] = before) -> None:
            _build_shard(bench, draft, first=before["next_place"], start=before["stop"], wanted=wanted)

        shard, built = bench.store.get_or_build(series.member(shard=len(shards)), build)
        shards.append(shard)
        any_built |= built
        advance(shard.summary["stop"] - before["stop"])
    return TokenStream(series, shards), any_built


def _build_shard(bench: Bench, draft: Draft, *, first: int, start: int, wanted: int) -> None:
    settings = bench.settings.corpus
    blocks = document_blocks(
        bench.corpus,
        bench.tokenizer,
        first=first,
        length=settings.block_length,
        per_document=settings.blocks_per_document,
    )
    rows = []
    position, place, last = start, first, True
    for block in blocks:
        if block.place != place and position - start >= SHARD_TOKENS:
            last = False
            break
        rows.append({"document": block.document, "offset": block.offset, "start": position, "tokens": block.tokens})
        position += len(block.tokens)
        place = block.place
    if last and position < wanted:
        raise corpus_too_small(bench, position, wanted)
    draft.summary = {"start": start, "stop": position, "blocks": len(rows), "next_place": place + 1, "last": last}
    save_table(draft.path / "blocks.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))


def corpus_too_small(bench: Bench, count: int, wanted: int) -> InputError:
    """The corpus has ``count`` tokens, fewer than a run cannot do without."""
    settings = bench.settings.corpus
    size = f"corpus.tokens to {count}"
    if bench.settings.method.reads == "samples":
        size = f"method.low_rank.n_samples to {count}"
    elif settings.is_auto:
        size = "corpus.auto.steps or corpus.auto.held_out"
    elif settings.tokens is None:
        size = f"corpus.dynamic_multiplier below {count / bench.checkpoint.key_width:.3g}"
    return InputError(
        f"The corpus {settings.path or settings.repository or settings.name} is too small.",
        got=f"{count:,} tokens",
        expected=f"{wanted:,} tokens",
        remedy=f"lower {size}, or add text",
    )
