"""Attention keys and values of a prefix that does not change, computed once and read many times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PrefixCache", "PrefixCompleteError"]


class PrefixCompleteError(Exception):
    """Raised by a recorder that has recorded its last block, to end the pass. The remaining blocks are not needed."""


class PrefixCache:
    """Replaces transformers' cache. ``update`` is the only method of it that a block calls.

    Unlike transformers' cache, it does not grow when it is used. A block attends to the prefix and to the keys and
    values that it has just computed; gradients flow through the latter. A cache made by ``recorder`` also keeps
    everything that the blocks attend to.
    """

    def __init__(self, prefix: dict[int, tuple[Tensor, Tensor]] | None = None, *, last_recorded: int | None = None):
        self._prefix = prefix or {}
        self._record: dict[int, tuple[Tensor, Tensor]] = {}
        self._last_recorded = last_recorded

    def recorder(self, last: int) -> PrefixCache:
        """A cache that keeps all that blocks attend to, this prefix included. It ends the pass in block ``last``."""
        return PrefixCache(self._prefix, last_recorded=last)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """The keys and values that a block attends to, (n, heads, prefix + length, head width)."""
        if layer in self._prefix:
            before_keys, before_values = (part.expand(len(keys), -1, -1, -1) for part in self._prefix[layer])
            keys, values = torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)
        if self._last_recorded is not None:
            self._record[layer] = keys, values
            if layer == self._last_recorded:
                raise PrefixCompleteError
        return keys, values

    def recorded(self) -> PrefixCache:
        """A cache whose prefix is everything that this recorder has kept."""
        return PrefixCache(self._record)

    def select(self, rows: Tensor | slice, length: int) -> PrefixCache:
        """A cache of the first ``length`` positions of ``rows``, in the order of ``rows``."""
        return PrefixCache(
            {
                layer: (_rows(keys, rows, length), _rows(values, rows, length))
                for layer, (keys, values) in self._prefix.items()
            }
        )

    @staticmethod
    def join(caches: Sequence[PrefixCache]) -> PrefixCache:
        """One cache with the rows of all ``caches``, in order. Shorter prefixes are right-padded."""
        joined = {}
        for layer in caches[0]._prefix:
            longest = max(cache._prefix[layer][0].shape[2] for cache in caches)
            keys, values = (
                torch.cat([_padded(cache._prefix[layer][part], longest) for cache in caches]) for part in (0, 1)
            )
            joined[layer] = keys, values
        return PrefixCache(joined)


def _rows(states: Tensor, rows: Tensor | slice, length: int) -> Tensor:
    # The blocks of a model may run on several devices, and their keys and values stay there.
    here = rows.to(states.device) if isinstance(rows, Tensor) else rows
    return states[here, :, :length].contiguous()


def _padded(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[2]))
