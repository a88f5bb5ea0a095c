"""Falcon: rotary or ALiBi positions, attention and MLP in parallel or in sequence, with one norm or two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout, causal_mask, reach
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class FalconLayout(Layout):
    model_type = "falcon"

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.num_hidden_layers)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.ffn_hidden_size)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(config.max_position_embeddings)

    def check_gguf(self, config: PretrainedConfig) -> None:
        raise InputError(
            "A GGUF file of a Falcon cannot be edited, because transformers does not read how its tokenizer splits "
            "text from it.",
            remedy="use the safetensors checkpoint that the file was made from",
        )

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.transformer.h

    def projection(self, block: HFModule) -> nn.Module:
        return block.mlp.dense_4h_to_h

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.transformer.ln_f

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return model.transformer.word_embeddings(tokens)

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        angles = None if model.config.alibi else model.transformer.rotary_emb(hidden, position_ids=positions)
        return {"causal": causal_mask(hidden), "position_embeddings": angles}

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        mask = shared["causal"] if mask is None else mask
        alibi = None
        if block.config.alibi:
            heads = block.num_heads
            alibi = build_alibi_tensor(reach(mask, len(hidden)), heads, hidden.dtype).view(len(hidden), heads, 1, -1)
            # Attention adds a mask of numbers to its scores, which are scaled, and the biases are not yet.
            scaled = alibi / block.self_attention.head_dim**0.5
            mask = torch.masked_fill(scaled, ~mask, torch.finfo(hidden.dtype).min)
        angles = shared["position_embeddings"]
        return block(hidden, layer_past=cache, attention_mask=mask, alibi=alibi, position_embeddings=angles)[0]


LAYOUT = FalconLayout()
