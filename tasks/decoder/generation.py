"""What a model goes on to say behind a prompt: its first choices, or tokens drawn among the likeliest.

Prompts run once, right-padded; then every row is fed the token it has just said, at its own next position, and attends
to the keys and values that its earlier positions left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.prefix_cache import PrefixCache

__all__ = ["TopK", "continuations", "end_tokens"]

_WASTE = 0.5
"""Of a batch that may be padding. A pass gives each row one token, so many passes cost more than some padding."""


@dataclass(frozen=True)
class TopK:
    """Each next token is drawn among the likeliest ones, by their probabilities.

    A prompt has draws of its own, which its tokens and the seed decide: neither the prompts beside it nor their order
    change what it is continued with, but for the last bits of a float.

    Attributes:
        count: of the tokens that are drawn among.
        seed: of the draws.
    """

    count: int
    seed: int

    def draws(self, prompt: Sequence[int], count: int) -> Tensor:
        """(count,) float64 in [0, 1), the draws of ``prompt``."""
        digest = digest_of({"seed": self.seed, "prompt": list(prompt)})
        generator = torch.Generator().manual_seed(int(digest[:8], 16))  # it takes no more than 32 bits
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def choose(self, scores: Tensor, draws: Tensor) -> Tensor:
        """(n,) tokens, for ``scores`` (n, vocabulary) and one draw each."""
        likeliest, tokens = (part.cpu() for part in scores.topk(min(self.count, scores.shape[1])))
        bounds = likeliest.double().softmax(-1).cumsum(-1)
        place = torch.searchsorted(bounds, draws[:, None]).clamp(max=bounds.shape[1] - 1)
        return tokens.gather(1, place)[:, 0]


def end_tokens(decoder: Decoder) -> frozenset[int]:
    """Tokens that end a text, as the model's generation config has them, or else its tokenizer."""
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
    """The tokens that continue each of ``prompts``, in their order.

    Args:
        decoder: the model.
        prompts: tokens, special ones included.
        limits: tokens of each prompt and its continuation together, at most; never more than the model takes. A
            prompt without tokens, or without room for another, is not run and continued with nothing.
        most_tokens: positions whose keys and values are kept at once, at most (or those of one longer text).
        top_k: draws each token; the likeliest one is taken if not given.
        ends: tokens that end a text; the one that is met is the continuation's last.
        advance: told how many more prompts are done.
    """
    limits = [min(limit, decoder.context_length) for limit in limits]
    rows = [_Row(prompt, limit, top_k) for prompt, limit in zip(prompts, limits, strict=True)]
    growing = [row for row in rows if row.prompt and row.room]
    advance(len(rows) - len(growing))
    for batch in length_batches([row.limit for row in growing], most_tokens, waste=_WASTE):
        _continue(decoder, [growing[place] for place in batch], top_k, ends)
        advance(len(batch))
    return [row.said for row in rows]


class _Row:
    """A prompt and its continuation as far as it is known.

    Attributes:
        prompt: its tokens.
        limit: tokens of both together, at most.
        said: the continuation.
        draws: (room,) one for each token that can be said, if any are drawn.
    """

    def __init__(self, prompt: Sequence[int], limit: int, top_k: TopK | None) -> None:
        self.prompt = prompt
        self.limit = limit
        self.said: list[int] = []
        self.draws = top_k.draws(prompt, self.room) if top_k else torch.empty(0)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.said)

    @property
    def room(self) -> int:
        """Tokens that may still be said."""
        return max(0, self.limit - self.length)


def _continue(decoder: Decoder, rows: Sequence[_Row], top_k: TopK | None, ends: Collection[int]) -> None:
    """Continue all of ``rows`` to their ends; those that have ended leave the batch."""
    cache = _RowCache(max(row.limit for row in rows))
    hidden = decoder.embed(pad([row.prompt for row in rows], decoder.device))
    hidden = decoder.run(hidden, 0, decoder.block_count, cache=cache)
    hidden = hidden[list(range(len(rows))), [row.length - 1 for row in rows]]
    while True:
        scores = decoder.logits(hidden)
        if top_k:
            chosen = top_k.choose(scores, torch.stack([row.draws[len(row.said)] for row in rows]))
        else:
            chosen = scores.argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.said.append(token)
        going = [place for place, row in enumerate(rows) if row.room and row.said[-1] not in ends]
        if not going:
            return
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            cache.keep(going)
        positions = torch.tensor([[row.length - 1] for row in rows], device=decoder.device)
        hidden = decoder.embed(torch.tensor([row.said[-1:] for row in rows], device=decoder.device), positions)
        mask = cache.open(positions)
        hidden = decoder.run(hidden, 0, decoder.block_count, positions=positions, mask=mask, cache=cache)[:, 0]


class _RowCache(PrefixCache):
    """Keys and values of rows of different lengths that grow by one position a pass.

    What a row adds takes the place of its padding, so that no row needs more room than its text.

    Args:
        room: positions that a row comes to have, at most.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._positions: Tensor | None = None
        self._reach = 0

    def open(self, positions: Tensor) -> Tensor:
        """Take what the next pass adds at ``positions`` (n, 1); gives its mask, (n, 1, 1, keys)."""
        self._positions, self._reach = positions[:, 0], int(positions.max()) + 1
        return (torch.arange(self._reach, device=positions.device) <= positions)[:, None, None]

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        for layer, (keys, values) in self._prefix.items():
            self._prefix[layer] = keys[rows], values[rows]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keep what a block has computed; gives all that it is to attend to."""
        if self._positions is None:
            self._prefix[layer] = self._roomy(keys), self._roomy(values)
            return keys, values
        rows, here = torch.arange(len(keys), device=keys.device), self._positions.to(keys.device)
        all_keys, all_values = self._prefix[layer]
        all_keys[rows, :, here], all_values[rows, :, here] = keys[:, :, 0], values[:, :, 0]
        return all_keys[:, :, : self._reach], all_values[:, :, : self._reach]

    def _roomy(self, states: Tensor) -> Tensor:
        return torch.nn.functional.pad(states, (0, 0, 0, self._room - states.shape[2]))
