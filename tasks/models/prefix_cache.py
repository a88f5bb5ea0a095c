"""Attention keys and values of positions that do not change, computed once and read many times."""

from __future__ import annotations

from torch import Tensor
import torch

__all__ = ["PrefixCache"]


class PrefixCache:
    """Stands in for transformers' cache, of which a block only ever calls ``update``.

    Unlike that one it never grows: while ``recording``, a block's keys and values are kept as its prefix; afterwards
    the prefix is put before whatever a block computes, and gradients flow through the latter.
    """

    def __init__(self) -> None:
        self.recording = True
        self._prefix: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keys and values (n, heads, prefix + length, head width) that a block is to attend to."""
        if self.recording:
            self._prefix[layer] = keys, values
            return keys, values
        prefix_keys, prefix_values = self._prefix[layer]
        return torch.cat([prefix_keys, keys], dim=2), torch.cat([prefix_values, values], dim=2)

    def select(self, rows: Tensor) -> PrefixCache:
        """The prefixes of some rows, in that order."""
        selected = PrefixCache()
        selected.recording = False
        selected._prefix = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._prefix.items()}
        return selected
