"""Attention keys and values of positions that do not change, computed once and read many times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PrefixCache", "PrefixCompleteError"]


class PrefixCompleteError(Exception):
    """Raised by a recorder that has all it was to keep: what the pass would go on to compute is not wanted."""


class PrefixCache:
    """Stands in for transformers' cache, of which a block only ever calls ``update``.

    Unlike that one it does not grow by being read. A block attends to the prefix and to what it has just computed,
    and gradients flow through the latter. A cache made by ``recorder`` keeps what the blocks attend to.
    """

    def __init__(self, prefix: dict[int, tuple[Tensor, Tensor]] | None = None, *, last_recorded: int | None = None):
        self._prefix = prefix or {}
        self._record: dict[int, tuple[Tensor, Tensor]] = {}
        self._last_recorded = last_recorded

    def recorder(self, last: int) -> PrefixCache:
        """A cache that keeps all that blocks attend to, this prefix included; ends the pass in block ``last``."""
        return PrefixCache(self._prefix, last_recorded=last)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keys and values (n, heads, prefix + length, head width) that a block is to attend to."""
        if layer in self._prefix:
            before_keys, before_values = (part.expand(len(keys), -1, -1, -1) for part in self._prefix[layer])
            keys, values = torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)
        if self._last_recorded is not None:
            self._record[layer] = keys, values
            if layer == self._last_recorded:
                raise PrefixCompleteError
        return keys, values

    def recorded(self) -> PrefixCache:
        """The prefix that a recorder has kept."""
        return PrefixCache(self._record)

    def select(self, rows: Tensor | slice, length: int) -> PrefixCache:
        """The first ``length`` positions of some rows, in that order."""
        return PrefixCache(
            {
                layer: (_rows(keys, rows, length), _rows(values, rows, length))
                for layer, (keys, values) in self._prefix.items()
            }
        )

    @staticmethod
    def join(caches: Sequence[PrefixCache]) -> PrefixCache:
        """The rows of several caches under each other; shorter prefixes are padded behind."""
        joined = {}
        for layer in caches[0]._prefix:
            longest = max(cache._prefix[layer][0].shape[2] for cache in caches)
            keys, values = (
                torch.cat([_padded(cache._prefix[layer][part], longest) for cache in caches]) for part in (0, 1)
            )
            joined[layer] = keys, values
        return PrefixCache(joined)


def _rows(states: Tensor, rows: Tensor | slice, length: int) -> Tensor:
    # Blocks of one model may run on several devices, and what they attend to stays with them.
    here = rows.to(states.device) if isinstance(rows, Tensor) else rows
    return states[here, :, :length].contiguous()


def _padded(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[2]))
