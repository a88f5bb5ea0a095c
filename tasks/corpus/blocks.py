"""Documents cut into blocks of tokens. The model reads each block as a separate text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from factsmith.tasks.corpus.source import CorpusSource

__all__ = ["Block", "document_blocks", "opening_tokens"]


@dataclass(frozen=True)
class Block:
    """Tokens of one document. A block never spans two documents.

    Attributes:
        document: index of the document in its source.
        place: place of the document in the order of the corpus.
        offset: index of the block's first own token in the document.
        tokens: the opening tokens, then the block's own tokens.
    """

    document: int
    place: int
    offset: int
    tokens: list[int]


def opening_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that the tokenizer puts before every text: a BOS token, or none."""
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
    documents_per_call: int = 256,
) -> Iterator[Block]:
    """The blocks of the documents from place ``first`` on, in order.

    Args:
        source: the documents.
        tokenizer: the model's tokenizer.
        first: place of the first document in the order of the corpus.
        length: number of tokens in a block, with its opening tokens; a document's last block may be shorter.
        per_document: maximum number of blocks from one document; ``None`` for all.
        documents_per_call: number of documents tokenized in one call.
    """
    opening = opening_tokens(tokenizer)
    own = length - len(opening)
    place = first
    while True:
        batch: list[tuple[int, str]] = []
        while len(batch) < documents_per_call and (found := source.document(place + len(batch))) is not None:
            batch.append(found)
        if not batch:
            return
        encodings = tokenizer([text for _, text in batch], add_special_tokens=False)["input_ids"]
        for (index, _), tokens in zip(batch, encodings, strict=True):
            offsets = range(0, len(tokens), own)
            for offset in offsets[:per_document]:
                yield Block(index, place, offset, opening + tokens[offset : offset + own])
            place += 1
