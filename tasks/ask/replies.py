"""What a model makes of a prompt: how it continues it, and the likeliest next tokens with their probabilities."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.chat.template import in_chat
from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import greedy_answers
from factsmith.tasks.decoder.text import encode_prompt, is_unicode, text_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["NextToken", "Reply", "encode_prompts", "replies"]


@dataclass(frozen=True)
class NextToken:
    """A token that may follow a prompt.

    Attributes:
        text: its text.
        probability: its probability, 0 to 1.
    """

    text: str
    probability: float


@dataclass(frozen=True)
class Reply:
    """What a model makes of a prompt.

    Attributes:
        continuation: the text that it writes with its first choices.
        likeliest: the likeliest next tokens, in descending order.
    """

    continuation: str
    likeliest: tuple[NextToken, ...]


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, chat: bool, context_length: int
) -> list[tuple[int, ...]]:
    """The tokens of each of ``prompts``: a text to continue, or with ``chat`` a user's turn in the chat template.

    Raises:
        InputError: a prompt is not Unicode text, has no tokens, or leaves no room for another one; or the model has no
            chat template.
    """
    found = []
    for number, prompt in enumerate(prompts, 1):
        if not is_unicode(prompt):
            raise InputError(f"Prompt {number} is not Unicode text.", got=repr(prompt)[:60])
        tokens = encode_prompt(tokenizer, in_chat(tokenizer, prompt) if chat else prompt, special=not chat).tokens
        if not 0 < len(tokens) < context_length:
            raise InputError(
                f"Prompt {number} {'is too long for the model' if tokens else 'has no tokens'}.",
                got=f"{len(tokens):,} tokens: {prompt[:60]!r}",
                expected=f"1 to {context_length - 1:,} tokens, so that one can follow",
            )
        found.append(tokens)
    return found


@torch.inference_mode()
def replies(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    likeliest: int,
    ends: Collection[int] = (),
    most_tokens: int,
) -> list[Reply]:
    """What the model makes of each of ``prompts``, in their order.

    Args:
        decoder: the model.
        prompts: the tokens of each prompt, special ones included. Each leaves room for another token.
        tokens: most tokens of a continuation.
        likeliest: number of next tokens to return.
        ends: tokens that end a continuation, besides those that end every text of the model.
        most_tokens: most positions that are in memory at the same time (or those of one longer prompt).
    """
    texts = greedy_answers(decoder, prompts, [1] * len(prompts), more=tokens - 1, ends=ends, most_tokens=most_tokens)
    next_tokens: list[tuple[NextToken, ...]] = [()] * len(prompts)
    for batch in length_batches([len(prompt) for prompt in prompts], most_tokens):
        chosen = [prompts[place] for place in batch]
        with decoder.prompted([len(prompt) - 1 for prompt in chosen]) as asked:
            hidden = decoder.run(decoder.embed(pad(chosen, decoder.device)), 0, decoder.block_count)
            probabilities = decoder.logits(asked.at_ends(hidden)).softmax(-1)
        values, places = (part.tolist() for part in probabilities.topk(min(likeliest, probabilities.shape[1])))
        for place, prompt, row, its in zip(batch, chosen, places, values, strict=True):
            pairs = zip(row, its, strict=True)
            next_tokens[place] = tuple(NextToken(_text(decoder, prompt, token), value) for token, value in pairs)
    return [Reply(text or "", its) for text, its in zip(texts, next_tokens, strict=True)]


def _text(decoder: Decoder, prompt: Sequence[int], token: int) -> str:
    """The text of a token after ``prompt``. A special token has no text, but a name."""
    return text_after(decoder.tokenizer, prompt, [token]) or str(decoder.tokenizer.convert_ids_to_tokens(token))
