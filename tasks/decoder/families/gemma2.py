"""Gemma 2: Llama's blocks with a norm after the attention and after the MLP, and capped scores and logits.

Every other block uses sliding-window attention. The embedding scales its own output by sqrt(d_model).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.families.llama import LlamaLayout
from factsmith.tasks.decoder.layout import HFModel, HFModule, causal_mask, penalty
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class Gemma2Layout(LlamaLayout):
    model_type = "gemma2"
    attention_implementation = "eager"  # The only implementation that caps scores and runs everywhere.

    def check(self, config: PretrainedConfig) -> None:
        if config.use_bidirectional_attention:
            raise InputError(
                "A Gemma with bidirectional attention cannot be edited, because it is not a decoder-only model.",
                got="use_bidirectional_attention=true",
            )

    def check_gguf(self, config: PretrainedConfig) -> None:
        # Those of 27 billion parameters scale attention scores in another way than the others.
        if config.query_pre_attn_scalar != config.head_dim:
            raise InputError(
                "A GGUF file of this Gemma cannot be edited, because transformers does not read the scale of attention "
                "scores from it.",
                got=f"query_pre_attn_scalar={config.query_pre_attn_scalar} for heads of {config.head_dim}",
                remedy="use the safetensors checkpoint that the file was made from",
            )

    def output_norm(self, block: HFModule) -> nn.Module:
        return block.post_feedforward_layernorm

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {**super().shared(model, hidden, positions), "causal": penalty(causal_mask(hidden))}

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        angles = {name: value for name, value in shared.items() if name != "causal"}
        added = shared["causal"] if mask is None else penalty(mask)
        return block(hidden, past_key_values=cache, attention_mask=added, **angles)

    def logits(self, model: HFModel, hidden: Tensor) -> Tensor:
        scores = super().logits(model, hidden)
        cap = model.config.final_logit_softcapping
        return scores if cap is None else cap * torch.tanh(scores / cap)


LAYOUT = Gemma2Layout()
