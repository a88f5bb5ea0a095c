"""How much of a model's work runs at once: as set, or as much as its device has memory for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from factsmith.tasks.model.cost import ModelCost
from factsmith.tasks.pipeline.settings import RuntimeSettings

__all__ = ["Limits", "fitting_limits", "limits"]

_TOKENS_ON_A_CPU = 8192
_MEMORY_ON_A_CPU = 2**31
_TOKENS_ON_A_GPU = (512, 65536)
"""Least and most positions of a pass. Larger passes do not use a GPU better."""

_SHARE = 0.25
"""Share of a GPU's memory, without the weights, that the activations of a pass may take."""

_KEPT_LAYERS = 5
"""Layers whose keys are taken from a pass. As many are usually edited."""


@dataclass(frozen=True)
class Limits:
    """How much runs at once.

    Attributes:
        most_tokens: most positions in one forward pass.
        memory: bytes for the activations of value vectors that are optimised together.
    """

    most_tokens: int
    memory: int


def limits(runtime: RuntimeSettings, device: torch.device, cost: Callable[[], ModelCost], item: int) -> Limits:
    """The limits of a model on ``device``.

    They depend on the memory that a GPU has, and not on what is free of it, so that passes are the same in every run.

    Args:
        runtime: the limits as they are set; ``None`` for those that fit the device.
        device: the device that the model runs on.
        cost: gives the sizes of the model.
        item: bytes of a weight in memory.
    """
    tokens, memory = runtime.tokens_per_pass, runtime.memory_mb and runtime.memory_mb * 2**20
    if tokens is None or memory is None:
        fitting = Limits(_TOKENS_ON_A_CPU, _MEMORY_ON_A_CPU)
        if device.type == "cuda":
            fitting = fitting_limits(torch.cuda.get_device_properties(device).total_memory, cost(), item)
        tokens, memory = tokens or fitting.most_tokens, memory or fitting.memory
    return Limits(tokens, memory)


def fitting_limits(total: int, cost: ModelCost, item: int) -> Limits:
    """The limits on a GPU with ``total`` bytes of memory.

    A position takes the states of a block, the keys that are taken from it, and, as every fourth or so is scored, a
    part of its logits. The number of positions is a power of two.
    """
    share = max(0, int(_SHARE * (total - item * cost.parameters)))
    position = 4 * (6 * cost.width + (2 + 2 * _KEPT_LAYERS) * cost.key_width) + 2 * cost.vocabulary
    least, most = _TOKENS_ON_A_GPU
    fitting = 1 << (max(1, share // position).bit_length() - 1)
    return Limits(min(most, max(least, fitting)), max(2**29, share))
