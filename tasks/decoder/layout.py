"""The layout of an architecture family: the parts of its models that Factsmith uses, and how to run them.

A layout knows where the blocks, their MLP output projections and the final norm are, and how to run the blocks one by
one. All other code uses a model through its layout. Each family has one file in ``families``; models of other families
are refused.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.placement import stored
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.pipeline.parts import load_parts

__all__ = [
    "HFModel",
    "HFModule",
    "Layout",
    "canonical_weight",
    "causal_mask",
    "layout_for",
    "penalty",
    "reach",
    "rotary",
]

HFModel: TypeAlias = Any
HFModule: TypeAlias = Any
"""Models and modules of transformers. They are ``Any``, because their parts differ between families."""


_QUERY_VALUE = ("q_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj")
"""Names of the modules that project queries and values: one for each, or one for queries, keys and values."""


class Layout(ABC):
    """The parts of the models of one ``model_type``, and how to run them."""

    model_type: ClassVar[str]
    attention_implementation: ClassVar[str] = "sdpa"
    """The attention implementation of transformers that is used. It affects the numbers that a model computes."""

    buffers: ClassVar[tuple[str, ...]] = (
        r"rotary_emb\.inv_freq$",
        r"attn\.(masked_)?bias$",
        r"attention\.(masked_)?bias$",
    )
    """Names of tensors, as regular expressions, that older checkpoints have although models compute them."""

    # ------------------------------------------------ from the config alone

    @abstractmethod
    def block_count(self, config: PretrainedConfig) -> int:
        """Number of decoder blocks."""

    @abstractmethod
    def key_width(self, config: PretrainedConfig) -> int:
        """d_k, the width of the input of a block's MLP output projection."""

    @abstractmethod
    def context_length(self, config: PretrainedConfig) -> int:
        """The most tokens that the model takes."""

    def check(self, config: PretrainedConfig) -> None:
        """Refuse a variant of the family that this layout does not handle correctly.

        Raises:
            InputError: names the setting of the config that the layout does not handle.
        """

    def check_gguf(self, config: PretrainedConfig) -> None:
        """Refuse a GGUF file of which transformers would make another model, or another tokenizer.

        Args:
            config: the config that transformers has read from the file.

        Raises:
            InputError: says what transformers does not read.
        """

    def shortened(self, config: PretrainedConfig, blocks: int) -> PretrainedConfig:
        """The config of a model of the first ``blocks`` blocks."""
        config = copy.deepcopy(config)
        setattr(config, "num_hidden_layers", blocks)  # noqa: B010 - Transformers knows it by this name in every family.
        if types := getattr(config, "layer_types", None):
            setattr(config, "layer_types", types[:blocks])  # noqa: B010
        return config

    def waits(self, config: PretrainedConfig) -> bool:
        """Whether a pass reads a result on the CPU. Dynamic rotary angles depend on the largest position."""
        return any(angles.get("rope_type") == "dynamic" for angles in rotary(config))

    def is_buffer(self, name: str) -> bool:
        """Whether the tensor ``name`` may be in a checkpoint without being a weight."""
        return any(re.search(pattern, name) for pattern in self.buffers)

    # ------------------------------------------------------------- the parts

    @abstractmethod
    def blocks(self, model: HFModel) -> nn.ModuleList:
        """The decoder blocks, in order."""

    @abstractmethod
    def projection(self, block: HFModule) -> nn.Module:
        """The MLP output projection of a block. Its input is the key, and its weight is edited."""

    def output_norm(self, block: HFModule) -> nn.Module | None:
        """The RMS norm that the MLP's output passes before it is added to the residual stream, if there is one."""
        return None

    def attention(self, block: HFModule) -> nn.Module:
        """The attention of a block. Its output, or the first item of it, is added to the residual stream.

        Some families normalise it before. What is added is a function of it alone in every family.
        """
        for name in ("attn", "self_attn", "attention", "self_attention"):
            found = getattr(block, name, None)
            if isinstance(found, nn.Module):
                return found
        raise TypeError(
            f"the attention of {type(block).__name__} has an unknown name; its layout must override attention()"
        )

    def query_value(self, block: HFModule) -> list[str]:
        """Names within a block of the linear modules that give queries and values, perhaps joined with others."""
        found = [name for name, _ in block.named_modules() if name.rpartition(".")[2] in _QUERY_VALUE]
        if not found:
            raise TypeError(
                f"the projections of queries and values of {type(block).__name__} have unknown names; its layout must "
                "override query_value()"
            )
        return found

    @abstractmethod
    def final_norm(self, model: HFModel) -> nn.Module:
        """The norm between the last block and the output embedding."""

    # -------------------------------------------------------------- running

    @abstractmethod
    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (n, length, d_model) before the first block, from ``tokens`` and ``positions`` (n, length)."""

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        """Inputs that are the same for every block, such as rotary angles. They are computed once per pass."""
        return {}

    @abstractmethod
    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        """Hidden states after ``block``.

        ``mask`` is (n, 1, queries, keys), true where a query may attend, or ``None`` for plain causal attention.
        """

    def logits(self, model: HFModel, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of the next token, from the last block's output (..., d_model)."""
        scores: Tensor = model.get_output_embeddings()(self.final_norm(model)(hidden))
        return scores


def causal_mask(hidden: Tensor) -> Tensor:
    """The mask (1, 1, length, length) of plain causal attention, for families that have no such attention."""
    length = hidden.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()[None, None]


def penalty(mask: Tensor) -> Tensor:
    """0 where ``mask`` is true, the lowest float32 elsewhere, for families that add the mask to the scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)


def reach(mask: Tensor, rows: int) -> Tensor:
    """(rows, keys) int64, 1 for the keys that the last query of a row may attend to.

    Every earlier query attends to some of these. The position of such a key, on which ALiBi depends, is therefore the
    number of those before it. Others are padding.
    """
    return mask[:, 0, -1].long().expand(rows, -1)


def rotary(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The settings of the rotary angles: one for all layers, one for each type of layer, or none."""
    angles = getattr(config, "rope_parameters", None) or {}
    by_type = [one for one in angles.values() if isinstance(one, dict)]
    return by_type or [angles]


def module_name(whole: HFModule, part: nn.Module) -> str:
    """The name of a module within ``whole``."""
    names: Iterator[str] = (name for name, module in whole.named_modules() if module is part)
    return next(names)


def canonical_weight(projection: nn.Module) -> Tensor:
    """The projection's weight as (d_out, d_in): a view that shares memory with the stored parameter.

    GPT-2's ``Conv1D`` stores (d_in, d_out). The module's type decides about the transposition, because the shape of a
    square weight cannot.
    """
    if isinstance(projection, Conv1D):
        return stored(projection, "weight").T
    if isinstance(projection, nn.Linear):
        return stored(projection, "weight")
    raise TypeError(f"{type(projection).__name__} is neither Linear nor Conv1D, so it cannot be an edited projection")


@cache
def _families() -> dict[str, Layout]:
    from factsmith.tasks.decoder import families

    return {module.LAYOUT.model_type: module.LAYOUT for module in load_parts(families.__name__)}


_EXPERTS = re.compile(r"(?<!shared_)experts$")
_STATES = re.compile(r"mamba|^ssm_|state_size$|^linear_num_|^lru_width$|^rescale_every$")
"""Settings of models with experts, and of those that carry states other than attention keys from token to token."""


def _refuse_unfit(config: PretrainedConfig, where: str) -> None:
    """Refuse a model of a kind for which no layout can be written. The config says the kind, whatever its name.

    Raises:
        InputError: says why, and what can be edited instead.
    """
    settings = list(_settings(config.to_dict()))
    named = f"The {config.model_type} model {where} cannot be edited"
    experts = [(name, value) for name, value in settings if _EXPERTS.search(name) and type(value) is int and value > 1]
    if experts:
        name, value = experts[0]
        raise InputError(
            f"{named}, because it is a mixture of experts: a router sends each token to a few of many MLPs, and a "
            "paraphrase perhaps to others. A fact has no single key, and no single projection to be written into.",
            got=f"{name}={value}",
            expected="a dense model, with one MLP in each block",
            remedy="edit a dense model, of the same maker if there is one",
        )
    if config.is_encoder_decoder:
        raise InputError(
            f"{named}, because it has an encoder.",
            got="is_encoder_decoder=true",
            expected="a decoder-only model",
            remedy="edit a decoder-only model",
        )
    if states := [name for name, value in settings if _STATES.search(name) and value]:
        raise InputError(
            f"{named}, because some of its blocks are state-space, recurrent or linear-attention blocks: the states "
            "that they carry from token to token are not kept between passes.",
            got=states[0],
            expected="a model whose blocks all have softmax attention and an MLP",
            remedy="edit a plain transformer",
        )
    texts = [name for name in config.sub_configs if name in ("text_config", "thinker_config", "language_config")]
    if texts:
        inner = getattr(getattr(config, texts[0]), "model_type", "text")
        raise InputError(
            f"{named}, because it reads more than text.",
            got=f"{texts[0]} of the type {inner!r}",
            expected="a language model alone",
            remedy="save its language model as a checkpoint of its own; docs/how-to/models.md says how for Gemma 3",
        )


def _settings(config: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of every setting in a config and the configs within it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value)
        else:
            yield str(name), value


def layout_for(config: PretrainedConfig, where: str) -> Layout:
    """The layout of the config's ``model_type``.

    Raises:
        InputError: the family has no layout, the layout refuses this variant, or the model is quantised.
    """
    layout = _families().get(config.model_type)
    if layout is None:
        _refuse_unfit(config, where)
        raise InputError(
            f"Models of type {config.model_type!r} cannot be edited ({where}).",
            expected=f"one of {', '.join(sorted(_families()))}",
            remedy=f"add the family's layout in tasks/decoder/families/{config.model_type}.py",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"The model {where} is quantised, so its weights cannot be edited.",
            expected="weights in float32, bfloat16 or float16",
            remedy="use the checkpoint that it was quantised from",
        )
    layout.check(config)
    return layout
