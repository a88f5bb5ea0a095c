"""Documents cut into blocks of tokens, each a text of its own to the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from factsmith.tasks.corpus.source import CorpusSource

__all__ = ["Block", "document_blocks", "opening_tokens"]


@dataclass(frozen=True)
class Block:
    """Tokens of one document, never of two.

    Attributes:
        document: index of the document in its source.
        place: of the document in the seeded order.
        offset: of the block's first own token among the document's.
        tokens: with whatever the tokenizer starts a text with.
    """

    document: int
    place: int
    offset: int
    tokens: list[int]


def opening_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the tokenizer puts before the first token of any text: a BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    return []


def document_blocks(
    source: CorpusSource,
    tokenizer: PreTrainedTokenizerFast,
    *,
    first: int,
    length: int,
    per_document: int | None,
    documents_at_once: int = 256,
) -> Iterator[Block]:
    """Blocks of the documents from place ``first`` on, in order.

    Args:
        source: the documents.
        tokenizer: the model's.
        first: place of the first document in the seeded order.
        length: tokens of a block, opening tokens included; a document's last block may be shorter.
        per_document: blocks a document gives at most; ``None`` for all of it.
        documents_at_once: tokenized in one call.
    """
    opening = opening_tokens(tokenizer)
    own = length - len(opening)
    place = first
    while True:
        batch: list[tuple[int, str]] = []
        while len(batch) < documents_at_once and (found := source.document(place + len(batch))) is not None:
            batch.append(found)
        if not batch:
            return
        encodings = tokenizer([text for _, text in batch], add_special_tokens=False)["input_ids"]
        for (index, _), tokens in zip(batch, encodings, strict=True):
            offsets = range(0, len(tokens), own)
            for offset in offsets[:per_document]:
                yield Block(index, place, offset, opening + tokens[offset : offset + own])
            place += 1
