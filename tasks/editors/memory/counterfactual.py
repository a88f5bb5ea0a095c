"""A counterfactual model: a few blocks of its own between the model's embedding and its final norm and output head.

Its blocks start as copies of the model's first ones. In a pass of the model, they run beside those, with the same
masks, positions and cache. For the positions that the counterfactual model answers, its last hidden states take the
place of the model's. What follows is the same for both, so its logits take the place of the model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.placement import is_offloaded
from factsmith.tasks.decoder.prefix_cache import PrefixCache

__all__ = ["FurtherLayers", "answered_beside", "counterfactual_model", "own_blocks"]


def own_blocks(
    decoder: Decoder, count: int, parameters: Mapping[str, Tensor] | None, dtype: torch.dtype | None = None
) -> nn.ModuleList:
    """Copies of the first ``count`` blocks, with ``parameters`` if they are given. The default dtype is the model's.

    Raises:
        InputError: a block is offloaded.
    """
    if any(map(is_offloaded, decoder.blocks[:count])):
        raise InputError(
            "The counterfactual model starts from blocks that are not on a device.",
            got="offloaded blocks",
            expected=f"the first {count} blocks on a device",
            remedy="use a device with more memory, or lower method.serac.blocks",
        )
    blocks = copy.deepcopy(decoder.blocks[:count]).to(dtype)
    if parameters is not None:
        with torch.no_grad():
            for name, parameter in blocks.named_parameters():
                parameter.copy_(parameters[name])
    return blocks


def counterfactual_model(decoder: Decoder, count: int, parameters: Mapping[str, Tensor] | None) -> Decoder:
    """A float32 model of ``own_blocks``, whose parameters require gradients. It shares all other float32 weights."""
    blocks = own_blocks(decoder, count, parameters, torch.float32)
    memo: dict[int, Any] = {id(decoder.blocks): blocks}
    memo |= {id(one): one for one in decoder.model.parameters() if one.dtype == torch.float32}
    found = Decoder(copy.deepcopy(decoder.model, memo).float(), decoder.tokenizer, decoder.layout)
    blocks.requires_grad_()
    return found


@contextmanager
def answered_beside(
    decoder: Decoder, blocks: nn.ModuleList, starts: Callable[[], None], answered: Callable[[int], Tensor]
) -> Iterator[None]:
    """While open, ``blocks`` run beside the first blocks of the model, and answer for some positions.

    Args:
        decoder: the model.
        blocks: blocks of the counterfactual model.
        starts: called when a pass starts.
        answered: gives the positions of the present pass that they answer for, (n, length) bool, from its length. It is
            asked when the model's last block has run.
    """
    beside = _Beside(blocks, decoder.block_count, starts, answered)
    with ExitStack() as stack:
        for layer in range(len(blocks)):
            hook = partial(beside.take, layer)
            stack.callback(decoder.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True).remove)
        stack.callback(decoder.blocks[-1].register_forward_hook(beside.put).remove)
        yield


class _Beside:
    """Hooks that take what the model's first blocks are called with, and call the other blocks with it."""

    def __init__(
        self, blocks: nn.ModuleList, further: int, starts: Callable[[], None], answered: Callable[[int], Tensor]
    ) -> None:
        self._blocks = blocks
        self._further = further
        self._starts = starts
        self._answered = answered
        self._calls: dict[int, tuple[Sequence[Any], Mapping[str, Any]]] = {}

    def take(self, layer: int, _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if layer == 0:
            self._starts()
        self._calls[layer] = args, given

    def put(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        calls, self._calls = self._calls, {}
        if len(calls) < len(self._blocks):
            raise RuntimeError("a pass of a model with a counterfactual model must start at the first block")
        hidden = output[0] if isinstance(output, tuple) else output
        answered = self._answered(hidden.shape[1])
        if not answered.any():  # None of these rows will ever be answered, so the cache does not need them either.
            return output
        own = calls[0][0][0]
        for layer, block in enumerate(self._blocks):
            args, given = calls[layer]
            own = block(own, *map(self._beside, args[1:]), **{name: self._beside(one) for name, one in given.items()})
            own = own[0] if isinstance(own, tuple) else own
        changed = torch.where(answered.to(hidden.device)[..., None], own.to(hidden), hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _beside(self, value: Any) -> Any:
        return FurtherLayers(value, self._further) if isinstance(value, (PrefixCache, Cache)) else value


class FurtherLayers:
    """A cache in which blocks have places after those of the model's ``before`` blocks.

    The rows of a cache are then chosen and put in order for all blocks together. ``update`` is the only method that a
    block calls.
    """

    def __init__(self, cache: PrefixCache | Cache, before: int) -> None:
        self._cache = cache
        self._before = before

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        if isinstance(self._cache, Cache):
            self._make_room(self._cache, layer)
        found: tuple[Tensor, Tensor] = self._cache.update(keys, values, self._before + layer, *args, **given)
        return found

    def _make_room(self, cache: Cache, layer: int) -> None:
        beside = cache.layers[layer]
        if not isinstance(beside, DynamicLayer):
            raise ValueError(f"a counterfactual model needs a DynamicCache, not one of {type(beside).__name__}")
        window = beside.sliding_window if isinstance(beside, DynamicSlidingWindowLayer) else None
        while len(cache.layers) <= self._before + layer:
            cache.layers.append(DynamicSlidingWindowLayer(window) if window else DynamicLayer())
