"""What one architecture family must say of itself before its models can be edited.

A layout knows where a block, its projection and its norm live, and how to run blocks one by one; everything else in
Factsmith works through it. One file a family in ``families/``; a model whose family is not there is refused.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.placement import stored
from factsmith.tasks.decoder.prefix_cache import PrefixCache

__all__ = ["HFModel", "HFModule", "Layout", "canonical_weight", "layout_for"]

HFModel: TypeAlias = Any
HFModule: TypeAlias = Any
"""Transformers' models and blocks. Their parts are not typed: knowing them is what a layout is for."""


class Layout(ABC):
    """The anatomy of one ``model_type``."""

    model_type: ClassVar[str]
    attention_implementation: ClassVar[str] = "sdpa"
    """Implementation that transformers is asked for; part of what decides a model's numbers."""

    # ------------------------------------------------ from the config alone

    @abstractmethod
    def block_count(self, config: PretrainedConfig) -> int:
        """Number of decoder blocks."""

    @abstractmethod
    def key_width(self, config: PretrainedConfig) -> int:
        """d_k: width of the input of a block's MLP output projection."""

    @abstractmethod
    def context_length(self, config: PretrainedConfig) -> int:
        """Most tokens the model takes."""

    def check(self, config: PretrainedConfig) -> None:
        """Refuse a variant of the family that this layout would get wrong.

        Raises:
            InputError: says which setting of the config.
        """

    # ------------------------------------------------------------- the parts

    @abstractmethod
    def blocks(self, model: HFModel) -> nn.ModuleList:
        """The decoder blocks, in order."""

    @abstractmethod
    def projection(self, block: HFModule) -> nn.Module:
        """The MLP output projection of a block: its input is the key, its weight is what gets edited."""

    def attention(self, block: HFModule) -> nn.Module:
        """The attention of a block: what it puts out (alone, or first of a tuple) goes into the residual stream."""
        for name in ("attn", "self_attn", "attention", "self_attention"):
            found = getattr(block, name, None)
            if isinstance(found, nn.Module):
                return found
        raise TypeError(f"{type(block).__name__} names its attention otherwise: its layout must say where it is.")

    @abstractmethod
    def final_norm(self, model: HFModel) -> nn.Module:
        """The norm between the last block and the output embedding."""

    # ----------------------------------------------------------- running them

    @abstractmethod
    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (n, length, d_model) before the first block, of ``tokens`` and ``positions`` (n, length)."""

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        """What every block takes besides hidden states, computed once a pass (rotary angles, say)."""
        return {}

    @abstractmethod
    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        """Hidden states after ``block``.

        ``mask`` is (n, 1, queries, keys), true where a query may look, or ``None`` for plain causal attention.
        """


def canonical_weight(projection: nn.Module) -> Tensor:
    """The projection's weight as (d_out, d_in), a view that shares memory with the parameter where it lies.

    GPT-2's ``Conv1D`` stores (d_in, d_out); the type decides, since a square weight's shape could not.
    """
    if isinstance(projection, Conv1D):
        return stored(projection, "weight").T
    if isinstance(projection, nn.Linear):
        return stored(projection, "weight")
    raise TypeError(f"{type(projection).__name__} is neither Linear nor Conv1D: its layout must not name it.")


@cache
def _families() -> dict[str, Layout]:
    from factsmith.tasks.decoder import families

    layouts: dict[str, Layout] = {}
    for module in pkgutil.iter_modules(families.__path__):
        layout = importlib.import_module(f"{families.__name__}.{module.name}").LAYOUT
        layouts[layout.model_type] = layout
    return layouts


def layout_for(config: PretrainedConfig, where: str) -> Layout:
    """The layout of the config's ``model_type``.

    Raises:
        InputError: no file knows the family, the family's file refuses this variant of it, or it is quantised.
    """
    layout = _families().get(config.model_type)
    if layout is None:
        raise InputError(
            f"Models of type {config.model_type!r} cannot be edited yet ({where}).",
            expected=f"one of {', '.join(sorted(_families()))}",
            remedy=f"add tasks/decoder/families/{config.model_type}.py with the family's layout",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"The model {where} is quantised: its weights cannot take an edit.",
            expected="weights in float32, bfloat16 or float16",
            remedy="take the checkpoint it was quantised from",
        )
    layout.check(config)
    return layout
