"""Llama 2 and 3, which many later families resemble: rotary positions, gated MLPs, ``Linear`` projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout, rotary
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class LlamaLayout(Layout):
    model_type = "llama"

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.num_hidden_layers)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.intermediate_size)

    def context_length(self, config: PretrainedConfig) -> int:
        longest = int(config.max_position_embeddings)
        # Blocks run with plain causal attention. This equals a sliding window only for texts no longer than the window.
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        if slides and getattr(config, "sliding_window", None):
            longest = min(longest, int(config.sliding_window))
        # In a pass longer than this, LongRoPE uses other angles for every row, which would change the shorter rows.
        for angles in rotary(config):
            if angles.get("rope_type") == "longrope":
                longest = min(longest, int(angles["original_max_position_embeddings"]))
        return longest

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.model.layers

    def projection(self, block: HFModule) -> nn.Module:
        return block.mlp.down_proj

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.model.norm

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return model.model.embed_tokens(tokens)

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {
            "position_ids": positions,
            "position_embeddings": model.model.rotary_emb(hidden, position_ids=positions),
        }

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        return block(hidden, past_key_values=cache, attention_mask=mask, **shared)


LAYOUT = LlamaLayout()
