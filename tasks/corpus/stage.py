"""Stage ``tokens``: the corpus as exact blocks of tokens, in shards. Reading further only adds shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Store
from factsmith.tasks.corpus.blocks import document_blocks
from factsmith.tasks.corpus.budget import TokenBudget
from factsmith.tasks.corpus.corpus import Corpus
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["SHARD_TOKENS", "TokenStream", "held_out_blocks", "last_reached", "last_within", "token_series", "tokens"]

SHARD_TOKENS = 2**16
"""A shard ends with the document that brings it to this many tokens."""

BLOCKS = "blocks.parquet"
"""The file with one row of ``SCHEMA`` per block."""

SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("offset", pa.int32()),
        ("start", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
    ]
)
"""``document`` is the document's index in the source, ``offset`` the place of the block's first own token in the
document, ``start`` the position of the block's first token in the stream."""


class _CorpusEndedError(Exception):
    """The corpus ended before it gave the tokens that a run needs at least."""

    def __init__(self, available: int) -> None:
        super().__init__(f"the corpus ends after {available} tokens")
        self.available = available


@dataclass(frozen=True)
class TokenStream:
    """The tokens of the corpus in their order, as far as they have been read.

    Attributes:
        series: the series of the shards.
        shards: the shards, in order.
        block_length: the most tokens of a block.
    """

    series: Series
    shards: Sequence[Artifact]
    block_length: int

    @property
    def count(self) -> int:
        """Number of tokens read so far."""
        return int(self.shards[-1].summary["stop"])

    @property
    def stops(self) -> list[int]:
        """The position after the last token of each shard."""
        return [int(shard.summary["stop"]) for shard in self.shards]

    def holding(self, span: tuple[int, int]) -> list[Artifact]:
        """The shards that hold the positions from ``span[0]`` to before ``span[1]``."""
        start, stop = span
        return [shard for shard in self.shards if shard.summary["start"] < stop and shard.summary["stop"] > start]

    def blocks(self, shard: Artifact) -> list[list[int]]:
        """The tokens of every block of a shard."""
        blocks: list[list[int]] = load_table(shard.path / BLOCKS)["tokens"].to_pylist()
        return blocks

    def shard_blocks(self, span: tuple[int, int]) -> Iterator[tuple[int, list[list[int]]]]:
        """The first position and all blocks of each shard that holds positions of ``span``."""
        for shard in self.holding(span):
            yield int(shard.summary["start"]), self.blocks(shard)


def token_series(corpus: Corpus, model: Fingerprint) -> Series:
    """The series of the shards of a corpus in the tokens of a model."""
    return Series(
        "tokens",
        1,
        {
            "corpus": corpus.source.recipe(),
            "block_length": corpus.settings.block_length,
            "blocks_per_document": corpus.settings.blocks_per_document,
            "shard_tokens": SHARD_TOKENS,
        },
        {"tokenizer": model.tokenizer},
    )


@stage("tokens")
def tokens(
    workspace: Workspace, model: Model, corpus: Corpus, budget: TokenBudget, wanted: int
) -> Outcome[TokenStream]:
    """Tokenize until there are ``wanted`` tokens or the corpus ends.

    Args:
        workspace: the run's workspace.
        model: the model whose tokenizer is used.
        corpus: the documents.
        budget: the token budget; ``budget.least`` is the number of tokens that the run cannot do without.
        wanted: the number of tokens that the run would use.

    Raises:
        InputError: the corpus ends before ``budget.least`` tokens; says how many it has.
    """
    try:
        with progress("tokens", wanted) as advance:
            stream, any_built = _read(workspace.store, model, corpus, budget.least, wanted, advance)
        if stream.count < budget.least:
            raise _CorpusEndedError(stream.count)
    except _CorpusEndedError as error:
        raise budget.too_small(error.available, budget.least) from None
    metrics = {"tokens": stream.count, "bytes": sum(shard.manifest.size for shard in stream.shards)}
    return Outcome(stream, stream.series.address, any_built, metrics)


def held_out_blocks(
    store: Store, model: Model, corpus: Corpus, first: int, most: int
) -> tuple[list[Artifact], list[list[int]]]:
    """Blocks after position ``first`` of the stream, from documents that begin after it.

    Returns:
        The shards that hold the blocks, and ``most`` blocks, or fewer if the corpus ends before.
    """
    wanted = first + 1
    while True:
        stream, _ = _read(store, model, corpus, 0, wanted)
        if not stream.count:  # The corpus has no text.
            return [], []
        shards = stream.holding((max(0, first - 1), stream.count))
        table = pa.concat_tables([load_table(shard.path / BLOCKS) for shard in shards])
        begun = table.filter(pc.less(table["start"], first))["document"].to_pylist()[-1:]
        other_document = pc.invert(pc.is_in(table["document"], value_set=pa.array(begun, pa.int64())))
        # A block of one token predicts nothing.
        predicts = pc.greater(pc.list_value_length(table["tokens"]), 1)
        later = pc.and_(pc.greater_equal(table["start"], first), pc.and_(other_document, predicts))
        held_out = table.filter(later)["tokens"]
        if len(held_out) >= most or stream.shards[-1].summary["last"]:
            return shards, held_out.slice(0, most).to_pylist()
        wanted = stream.count + 1


def last_reached(store: Store, model: Model, corpus: Corpus, *positions: int) -> int:
    """The last of ``positions`` that the corpus extends beyond; the smallest if it extends beyond none."""
    stream, _ = _read(store, model, corpus, 0, max(positions) + 1)
    return last_within(stream.count, *positions)


def last_within(available: int, *positions: int) -> int:
    """The last of ``positions`` that is among ``available`` tokens; the smallest if none is."""
    return max((one for one in positions if one < available), default=min(positions))


def _read(
    store: Store,
    model: Model,
    corpus: Corpus,
    least: int,
    wanted: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> tuple[TokenStream, bool]:
    """The stream with ``wanted`` tokens, or all that the corpus has, and whether a shard had to be built.

    Raises:
        _CorpusEndedError: the corpus ends before ``least`` tokens. The shard that shows it is not published.
    """
    series = token_series(corpus, model.fingerprint)
    shards: list[Artifact] = []
    any_built = False
    while not shards or (shards[-1].summary["stop"] < wanted and not shards[-1].summary["last"]):
        before = shards[-1].summary if shards else {"stop": 0, "next_place": 0}

        def build(draft: Draft, before: dict[str, int] = before) -> None:
            _build_shard(draft, model, corpus, first=before["next_place"], start=before["stop"], least=least)
            if token_series(corpus, model.fingerprint).digest != series.digest:
                raise InputError(
                    f"corpus={corpus.settings.name} was written to while it was read.",
                    remedy="run again when nothing writes to it",
                )

        shard, built = store.get_or_build(series.member(shard=len(shards)), build)
        shards.append(shard)
        any_built |= built
        advance(shard.summary["stop"] - before["stop"])
    return TokenStream(series, shards, corpus.settings.block_length), any_built


def _build_shard(draft: Draft, model: Model, corpus: Corpus, *, first: int, start: int, least: int) -> None:
    blocks = document_blocks(
        corpus.source,
        model.tokenizer,
        first=first,
        length=corpus.settings.block_length,
        per_document=corpus.settings.blocks_per_document,
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
    if last and position < least:
        raise _CorpusEndedError(position)
    draft.summary = {"start": start, "stop": position, "blocks": len(rows), "next_place": place + 1, "last": last}
    save_table(draft.path / BLOCKS, pa.Table.from_pylist(rows, schema=SCHEMA))
