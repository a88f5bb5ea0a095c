"""Token sequences of many lengths, grouped so that little of a pass is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["length_batches", "pad"]


def pad(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Tensor:
    """Right-pad ``sequences`` with 0 into (n, longest), int64.

    What the padding holds does not matter: attention is causal, and no real position looks behind itself.
    """
    longest = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return tokens.to(device)


def length_batches(lengths: Sequence[int], most_tokens: int, *, waste: float = 0.1) -> Iterator[list[int]]:
    """Indices of sequences, shortest first, in batches of like length.

    A batch holds at most ``most_tokens`` positions, padding included (or one longer sequence alone), and is closed
    once more than ``waste`` of it would be padding.
    """
    batch: list[int] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[index]
        padded = length * (len(batch) + 1)
        if batch and (padded > most_tokens or real + length < (1 - waste) * padded):
            yield batch
            batch, real = [], 0
        batch.append(index)
        real += length
    if batch:
        yield batch
