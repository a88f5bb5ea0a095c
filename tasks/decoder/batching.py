"""Batches of token sequences of different lengths, grouped so that a forward pass contains little padding.

A pass may also say where the prompts in its rows end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Prompts", "length_batches", "pad"]


def pad(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Tensor:
    """Right-pad ``sequences`` with 0 into (n, longest), int64.

    The padding value does not matter: attention is causal, so no real position attends to the padding after it.
    """
    longest = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens.to(device)


def length_batches(
    lengths: Sequence[int], most_tokens: int, *, waste: float = 0.1, spare: int = 0
) -> Iterator[list[int]]:
    """Group sequences of similar length into batches. Yields the indices of each batch, shortest sequences first.

    A batch holds at most ``most_tokens`` positions, padding included, or one longer sequence alone. It ends before a
    sequence that would make more than ``spare`` positions and more than the share ``waste`` of it padding.
    """
    batch: list[int] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[index]
        padded = length * (len(batch) + 1)
        padding = padded - real - length
        if batch and (padded > most_tokens or padding > max(spare, waste * padded)):
            yield batch
            batch, real = [], 0
        batch.append(index)
        real += length
    if batch:
        yield batch


class Prompts:
    """The prompts in the rows of some passes.

    A module that adds a memory to the model looks up each prompt once, and treats the tokens that follow as part of the
    same request. A pass alone does not tell where its prompts end.

    Attributes:
        ends: (n,) index of the last token of each row's prompt.
        decided: what modules have decided about each row, by name, (n, ...). A module fills it in the first pass, which
            runs all of the prompts, and reads it in the passes that continue them.
    """

    def __init__(self, ends: Sequence[int], device: torch.device) -> None:
        self.ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.decided: dict[str, Tensor] = {}

    def at_ends(self, states: Tensor) -> Tensor:
        """(n, width) what ``states`` (n, length, width) are at the last token of each prompt."""
        return states[torch.arange(len(states), device=states.device), self.ends.to(states.device)]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows except ``rows``."""
        self.ends = self.ends[list(rows)]
        self.decided = {name: each[list(rows)] for name, each in self.decided.items()}
