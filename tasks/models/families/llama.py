"""Llama 2 and 3: rotary positions, gated MLPs, ``Linear`` projections stored (d_out, d_in)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from factsmith.tasks.models.layout import Layout


class LlamaLayout(Layout):
    model_type = "llama"

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.num_hidden_layers)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.intermediate_size)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(config.max_position_embeddings)

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        return model.model.layers

    def projection(self, block: nn.Module) -> nn.Module:
        return block.mlp.down_proj

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        return model.model.norm

    def embed(self, model: PreTrainedModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return model.model.embed_tokens(tokens)

    def shared(self, model: PreTrainedModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {
            "position_ids": positions,
            "position_embeddings": model.model.rotary_emb(hidden, position_ids=positions),
        }

    def run_block(
        self, block: nn.Module, hidden: Tensor, mask: Tensor | None, cache: Cache | None, shared: dict[str, Any]
    ) -> Tensor:
        return block(hidden, past_key_values=cache, attention_mask=mask, **shared)


LAYOUT = LlamaLayout()
