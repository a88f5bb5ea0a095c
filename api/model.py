"""A transformers model that the user has loaded, as a decoder while it is needed. It is left as it was found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import canonical_weight, layout_for
from factsmith.tasks.decoder.quiet import quiet_transformers
from factsmith.tasks.edit.edit import Edit, ModuleEdit
from factsmith.tasks.model.cost import sizes
from factsmith.tasks.model.limits import Limits, limits
from factsmith.tasks.pipeline.settings import RuntimeSettings

__all__ = ["check_model", "edited_layers", "limits_of", "opened", "weights_digest"]


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
    layout_for(model.config, f"in memory ({name})")
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
        with torch.enable_grad():  # Value vectors need it, and the caller may have switched it off.
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
