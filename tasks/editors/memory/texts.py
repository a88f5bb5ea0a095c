"""Unrelated text, which the unedited model writes. Memories learn from it what they are not to answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import TopK, continuations
from factsmith.tasks.decoder.text import encode_prompt

__all__ = ["end_keys", "text_keys", "written_texts"]

_TEXT_LENGTH = 20
"""Most tokens of an unrelated text. Each of them is an example of a prompt's last token."""

_TOP_K = 50


def written_texts(decoder: Decoder, count: int, seed: int) -> list[list[int]]:
    """Texts that the model writes, each after a random token. They are examples of text that is not about the facts."""
    generator = torch.Generator().manual_seed(seed)
    first = list(encode_prompt(decoder.tokenizer, "").tokens)
    starts = torch.randint(len(decoder.tokenizer), (count,), generator=generator).tolist()
    prompts = [[*first, start] for start in starts]
    lengths = [len(first) + _TEXT_LENGTH] * count
    most_tokens = count * lengths[0]
    written = continuations(decoder, prompts, lengths, most_tokens=most_tokens, top_k=TopK(_TOP_K, seed))
    return [prompt + more for prompt, more in zip(prompts, written, strict=True)]


@torch.no_grad()
def text_keys(decoder: Decoder, layer: int, texts: Sequence[Sequence[int]]) -> Tensor:
    """(texts, length, d_k) float32 keys of all tokens of texts of one length."""
    found: list[Tensor] = []
    with decoder.tapped([layer], lambda _, keys: found.append(keys), stop=True):
        decoder.run(decoder.embed(pad(texts, decoder.device)), 0, layer + 1)
    return found[0].float()


@torch.no_grad()
def end_keys(decoder: Decoder, layer: int, prompts: Sequence[Sequence[int]], most_tokens: int) -> Tensor:
    """(n, d_k) float32 keys of the last token of each of ``prompts``, with at most ``most_tokens`` positions a pass."""
    found = torch.zeros(len(prompts), decoder.key_width, device=decoder.device)
    for batch in length_batches([len(one) for one in prompts], most_tokens, spare=decoder.pass_cost):
        chosen = [prompts[place] for place in batch]

        def take(_: int, keys: Tensor, batch: list[int] = batch, chosen: Sequence[Sequence[int]] = chosen) -> None:
            found[batch] = keys[list(range(len(batch))), [len(one) - 1 for one in chosen]].float()

        with decoder.tapped([layer], take, stop=True):
            decoder.run(decoder.embed(pad(chosen, decoder.device)), 0, layer + 1)
    return found
