"""Perplexity: how well a model still predicts ordinary text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["block_nll", "perplexity", "prompt_end"]

_POSITIONS_PER_CHUNK = 1024
"""Positions whose scores over the whole vocabulary are in memory together."""


def prompt_end(tokens: int) -> int:
    """Where the prompt of a text of so many tokens ends, for a memory that answers prompts: halfway.

    The predictions of the second half then continue a prompt, as those of an answer do.
    """
    return (tokens - 1) // 2


@torch.inference_mode()
def block_nll(
    decoder: Decoder,
    blocks: Sequence[Sequence[int]],
    *,
    most_tokens: int,
    advance: Callable[[int], None] = lambda blocks: None,
) -> list[float]:
    """The sum for each block of the NLL, in nats, of every token but the first, given the tokens before it.

    Args:
        decoder: the model.
        blocks: token sequences, each scored as a separate text.
        most_tokens: most positions in one forward pass; a longer block runs alone.
        advance: called with the number of blocks just finished.
    """
    found = [0.0] * len(blocks)
    for batch in length_batches([len(block) for block in blocks], most_tokens, spare=decoder.pass_cost):
        tokens = pad([blocks[index] for index in batch], decoder.device)
        lengths = [len(blocks[index]) for index in batch]
        with decoder.prompted([prompt_end(length) for length in lengths]):
            hidden = decoder.run(decoder.embed(tokens), 0, decoder.block_count)
        read = torch.cat([hidden[row, : length - 1] for row, length in enumerate(lengths)])
        wanted = torch.cat([tokens[row, 1:length] for row, length in enumerate(lengths)])
        each = torch.cat(
            [
                torch.nn.functional.cross_entropy(decoder.logits(states), labels, reduction="none")
                for states, labels in zip(
                    read.split(_POSITIONS_PER_CHUNK), wanted.split(_POSITIONS_PER_CHUNK), strict=True
                )
            ]
        ).double()
        sums = torch.stack([part.sum() for part in each.split([length - 1 for length in lengths])])
        for index, total in zip(batch, sums.tolist(), strict=True):
            found[index] = total
        advance(len(batch))
    return found


def perplexity(nll: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of the mean NLL per predicted token; infinity if that overflows a float64.

    Args:
        nll: sum of the NLL of each block.
        tokens: number of predicted tokens of each block.
    """
    mean = sum(nll) / sum(tokens)
    return math.exp(mean) if mean < math.log(torch.finfo(torch.float64).max) else math.inf
