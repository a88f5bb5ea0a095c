"""A transformers model that the user has loaded, as a decoder while it is needed. It is left as it was found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import canonical_weight, layout_for
from factsmith.tasks.decoder.placement import state_dict
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.deltas.exact import BITS
from factsmith.tasks.edit.edit import Edit, ModuleEdit
from factsmith.tasks.model.cost import sizes
from factsmith.tasks.model.limits import Limits, limits
from factsmith.tasks.pipeline.settings import RuntimeSettings

__all__ = [
    "check_model",
    "edited_layers",
    "edits_of",
    "limits_of",
    "opened",
    "set_edits",
    "state_digest",
    "weights_digest",
]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Data types of weights that can be edited."""

_APPLIED = "_factsmith_edits"
"""The attribute of a model that holds the edits that are applied to it."""


class _Applied(tuple[Any, ...]):
    """The edits that are applied to a model, the last one last. A copy of the model has none that it could remove."""

    def __reduce_ex__(self, _: Any) -> Any:
        return tuple, ()


def edits_of(model: Any) -> tuple[Any, ...]:
    """The edits that are applied to a model, the last one last."""
    found: tuple[Any, ...] = vars(model).get(_APPLIED, ())
    return found


def set_edits(model: Any, edits: Sequence[Any]) -> None:
    """Say which edits are applied to a model."""
    if edits:
        vars(model)[_APPLIED] = _Applied(edits)
    else:
        vars(model).pop(_APPLIED, None)


def check_model(model: Any, tokenizer: Any) -> None:
    """Check that the model can be edited.

    Raises:
        InputError: it is no causal language model of a known family, or the tokenizer cannot be used.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise InputError(
            f"A {name} cannot be edited.",
            expected="a causal language model of transformers, such as AutoModelForCausalLM loads",
            remedy="call merge_and_unload() first" if hasattr(model, "merge_and_unload") else None,
        )
    layout = layout_for(model.config, f"in memory ({name})")
    for block in layout.blocks(model):
        projection = layout.projection(block)
        weight = getattr(projection, "weight", None)
        if not isinstance(projection, nn.Linear | Conv1D) or weight is None or weight.dtype not in _DTYPES:
            raise InputError(
                f"The weights of this {name} cannot be edited.",
                got=f"a projection of the type {type(projection).__module__}.{type(projection).__name__}"
                + (f" in {str(weight.dtype).removeprefix('torch.')}" if isinstance(weight, Tensor) else ""),
                expected="Linear or Conv1D modules of torch and transformers, not quantised and without an adapter",
                remedy="load the model unquantised; merge adapters into it, or remove them",
            )
    stored = state_dict(model).values()
    if any(one.is_meta or one.is_inference() for one in stored):
        raise InputError(
            f"The weights of this {name} cannot be read and written.",
            got="tensors on the device meta, which have no numbers"
            if any(one.is_meta for one in stored)
            else "tensors that were made in torch.inference_mode()",
            remedy="load it with from_pretrained, outside of such contexts",
        )
    if any(edit.edit.adds_memory for edit in edits_of(model)):
        raise InputError(
            "The model has a memory, which answers in place of its weights.", remedy="remove() the edit with it first"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"A {type(tokenizer).__name__} cannot be used as the tokenizer.",
            expected="a fast tokenizer, which gives the offsets of tokens, such as AutoTokenizer loads",
        )


@contextmanager
def opened(model: Any, tokenizer: PreTrainedTokenizerFast) -> Iterator[Decoder]:
    """The model as a decoder while open: in evaluation mode, without gradients of its weights.

    Modes, gradients, the attention implementation and the side of padding are restored afterwards.
    """
    layout = layout_for(model.config, "in memory")
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    attention, side = model.config._attn_implementation, tokenizer.padding_side
    try:
        tokenizer.padding_side = "right"
        if attention != layout.attention_implementation:
            with quiet_transformers():
                model.set_attn_implementation(layout.attention_implementation)
            if model.config._attn_implementation != layout.attention_implementation:
                raise InputError(
                    f"The attention of this {type(model).__name__} cannot be used, nor changed.",
                    got=f"attn_implementation={attention}",
                    expected=layout.attention_implementation,
                    remedy=f"load the model with attn_implementation={layout.attention_implementation!r}",
                )
        # Value vectors need gradients, and the caller may have switched them off.
        with torch.inference_mode(False), torch.enable_grad():
            yield Decoder(model, tokenizer, layout)
    finally:
        tokenizer.padding_side = side
        if attention != layout.attention_implementation:
            model.set_attn_implementation(attention)
        for module, mode in training:
            module.training = mode
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)


def limits_of(decoder: Decoder) -> Limits:
    """How much runs at once: as much as a run with the default settings."""
    model = decoder.model
    return limits(RuntimeSettings(), decoder.device, lambda: sizes(model, decoder.layout), model.dtype.itemsize)


def edited_layers(layers: Sequence[int], decoder: Decoder) -> list[int]:
    """The layers, ascending.

    Raises:
        InputError: the model does not have one of them.
    """
    if (
        isinstance(layers, str)
        or not isinstance(layers, Iterable)
        or not all(isinstance(one, Integral) for one in layers)
    ):
        raise InputError("The layers are not numbers.", got=repr(layers)[:200], expected="a list such as [5, 6, 7]")
    for layer in layers:
        if not 0 <= layer < decoder.block_count:
            raise InputError(
                f"Layer {layer} is out of range for this model.",
                expected=f"0 to {decoder.block_count - 1}",
                remedy="give other layers",
            )
    return sorted(set(layers))


def weights_digest(decoder: Decoder, layers: Sequence[int], edit: Edit) -> str:
    """SHA-256 of the weights that an edit of some layers changes, or stands beside, as the model has them now."""
    weights = {f"layer {layer}": decoder.weight(layer) for layer in layers}
    if isinstance(edit, ModuleEdit):
        blocks = decoder.blocks
        weights |= {
            edit.described((layer, name)): canonical_weight(blocks[layer].get_submodule(name))
            for layer, name in edit.deltas
        }
    digest = hashlib.sha256()
    for place, one in weights.items():
        weight = one.detach().contiguous().cpu()
        digest.update(f"{place} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_digest(decoder: Decoder) -> str:
    """One checksum of all weights of the model, those that no edit changes too.

    It reads them as fast as memory allows: of each tensor, it takes the sum of its bits as integers.
    """
    found = {
        name: [str(one.dtype), list(one.shape), int(one.detach().view(BITS[one.itemsize]).sum(dtype=torch.int64))]
        for name, one in state_dict(decoder.model).items()
    }
    return digest_of(found)
