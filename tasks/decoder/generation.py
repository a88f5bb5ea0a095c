"""Text generation: continue prompts with the likeliest token at each step, or with tokens drawn by top-k sampling.

Prompts run once, right-padded. Each further pass feeds every row the token that it has just generated, at the row's own
next position. The token attends to the cached keys and values of the row's earlier positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.batching import Prompts, length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.decoder.text import text_after

__all__ = ["TopK", "continuations", "end_tokens", "generator_for", "greedy_answers"]

_WASTE = 0.5
"""Share of a batch that may be padding. A pass adds one token to each row, so padding costs less than more passes."""


def generator_for(content: Mapping[str, Any]) -> torch.Generator:
    """A generator on the CPU whose draws depend on ``content``, values of JSON, and on nothing else."""
    return torch.Generator().manual_seed(int(digest_of(content)[:8], 16))  # It uses only 32 bits of a seed.


@dataclass(frozen=True)
class TopK:
    """Top-k sampling: each next token is drawn among the likeliest ones, by their probabilities.

    The random draws of a prompt depend on its tokens and the seed alone. The other prompts and their order therefore do
    not change its continuation, except through the last bits of a float.

    Attributes:
        count: number of tokens that are drawn among.
        seed: seed of the draws.
    """

    count: int
    seed: int

    def draws(self, prompt: Sequence[int], count: int) -> Tensor:
        """The random draws of ``prompt``, (count,) float64 in [0, 1)."""
        generator = generator_for({"seed": self.seed, "prompt": list(prompt)})
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def choose(self, scores: Tensor, draws: Tensor) -> Tensor:
        """The next token of each row, (n,), from ``scores`` (n, vocabulary) and ``draws`` (n,)."""
        likeliest, tokens = (part.cpu() for part in scores.topk(min(self.count, scores.shape[1])))
        bounds = likeliest.double().softmax(-1).cumsum(-1)
        place = torch.searchsorted(bounds, draws[:, None]).clamp(max=bounds.shape[1] - 1)
        return tokens.gather(1, place)[:, 0]


def end_tokens(decoder: Decoder) -> frozenset[int]:
    """Tokens that end a text, from the model's generation config, or from its tokenizer if the config has none."""
    ends = decoder.model.generation_config.eos_token_id
    if ends is None:
        ends = decoder.tokenizer.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


@torch.inference_mode()
def continuations(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    most_tokens: int,
    top_k: TopK | None = None,
    ends: Collection[int] = (),
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[list[int]]:
    """The tokens that continue each of ``prompts``, in the order of ``prompts``.

    Args:
        decoder: the model.
        prompts: tokens of each prompt, special ones included.
        limits: most tokens of each prompt together with its continuation. A limit above the model's context length is
            lowered to it. A prompt that has no tokens, or no room for another one, gets an empty continuation.
        most_tokens: most positions whose keys and values are in memory at the same time (or those of one longer text).
        top_k: draws each token; ``None`` for the likeliest token.
        ends: tokens that end a text. A continuation includes the one that ends it.
        advance: called with the number of prompts just finished.
    """
    limits = [min(limit, decoder.context_length) for limit in limits]
    rows = [_Row(prompt, limit, top_k) for prompt, limit in zip(prompts, limits, strict=True)]
    growing = [row for row in rows if row.prompt and row.room]
    advance(len(rows) - len(growing))
    for batch in length_batches([row.limit for row in growing], most_tokens, waste=_WASTE):
        chosen = [growing[place] for place in batch]
        with decoder.prompted([len(row.prompt) - 1 for row in chosen]) as asked:
            _continue(decoder, asked, chosen, top_k, ends)
        advance(len(batch))
    return [row.continuation for row in rows]


def greedy_answers(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    more: int = 0,
    ends: Collection[int] = (),
    most_tokens: int,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[str | None]:
    """The text that the model writes after each of ``prompts`` with its first choices, in the order of ``prompts``.

    Args:
        decoder: the model.
        prompts: tokens of each prompt, special ones included.
        counts: tokens that an answer may need. If a prompt leaves no room for them, its answer is ``None``.
        more: tokens that an answer may have besides these, if there is room.
        ends: tokens that end an answer, besides those that end every text of the model.
        most_tokens: as in ``continuations``.
        advance: called with the number of prompts just finished.
    """
    needed = [len(prompt) + count for prompt, count in zip(prompts, counts, strict=True)]
    limits = [length + more if length <= decoder.context_length else 0 for length in needed]
    ends = end_tokens(decoder).union(ends)
    generated = continuations(decoder, prompts, limits, most_tokens=most_tokens, ends=ends, advance=advance)
    return [
        text_after(decoder.tokenizer, prompt, continuation) if continuation else None
        for prompt, continuation in zip(prompts, generated, strict=True)
    ]


class _Row:
    """A prompt and the continuation generated so far.

    Attributes:
        prompt: tokens of the prompt.
        limit: most tokens of prompt and continuation together.
        continuation: tokens generated so far.
        draws: one random draw for each token that can be generated, (room,); empty if none are drawn.
    """

    def __init__(self, prompt: Sequence[int], limit: int, top_k: TopK | None) -> None:
        self.prompt = prompt
        self.limit = limit
        self.continuation: list[int] = []
        self.draws = top_k.draws(prompt, self.room) if top_k else torch.empty(0)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.continuation)

    @property
    def room(self) -> int:
        """Number of tokens that can still be generated."""
        return max(0, self.limit - self.length)


def _continue(
    decoder: Decoder, prompts: Prompts, rows: Sequence[_Row], top_k: TopK | None, ends: Collection[int]
) -> None:
    """Continue all of ``rows``, whose prompts are ``prompts``, to their ends. A row that has ended leaves the batch."""
    cache = _RowCache(max(row.limit for row in rows))
    hidden = decoder.embed(pad([row.prompt for row in rows], decoder.device))
    hidden = decoder.run(hidden, 0, decoder.block_count, cache=cache)
    hidden = prompts.at_ends(hidden)
    while True:
        scores = decoder.logits(hidden)
        if top_k:
            chosen = top_k.choose(scores, torch.stack([row.draws[len(row.continuation)] for row in rows]))
        else:
            chosen = scores.argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.continuation.append(token)
        unfinished = [place for place, row in enumerate(rows) if row.room and row.continuation[-1] not in ends]
        if not unfinished:
            return
        if len(unfinished) < len(rows):
            rows = [rows[place] for place in unfinished]
            cache.keep(unfinished)
            prompts.keep(unfinished)
        positions = torch.tensor([[row.length - 1] for row in rows], device=decoder.device)
        tokens = torch.tensor([row.continuation[-1:] for row in rows], device=decoder.device)
        hidden = decoder.embed(tokens, positions)
        mask = cache.open(positions)
        hidden = decoder.run(hidden, 0, decoder.block_count, positions=positions, mask=mask, cache=cache)[:, 0]


class _RowCache(PrefixCache):
    """Keys and values of rows of different lengths that grow by one position per pass.

    The states of a new position overwrite the row's padding, so that no row needs more room than its text.

    Args:
        room: most positions that a row can reach.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._positions: Tensor | None = None
        self._reach = 0

    def open(self, positions: Tensor) -> Tensor:
        """Prepare for a pass that adds ``positions`` (n, 1). Returns the mask of that pass, (n, 1, 1, keys)."""
        self._positions, self._reach = positions[:, 0], int(positions.max()) + 1
        return (torch.arange(self._reach, device=positions.device) <= positions)[:, None, None]

    def keep(self, rows: list[int]) -> None:
        """Drop all rows except ``rows``."""
        for layer, (keys, values) in self._prefix.items():
            self._prefix[layer] = keys[rows], values[rows]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store the keys and values that a block has computed. Returns all those that it attends to."""
        if self._positions is None:
            self._prefix[layer] = self._roomy(keys), self._roomy(values)
            return keys, values
        rows, here = torch.arange(len(keys), device=keys.device), self._positions.to(keys.device)
        all_keys, all_values = self._prefix[layer]
        all_keys[rows, :, here], all_values[rows, :, here] = keys[:, :, 0], values[:, :, 0]
        return all_keys[:, :, : self._reach], all_values[:, :, : self._reach]

    def _roomy(self, states: Tensor) -> Tensor:
        return torch.nn.functional.pad(states, (0, 0, 0, self._room - states.shape[2]))
