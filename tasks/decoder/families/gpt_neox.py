"""GPT-NeoX and Pythia: rotary positions, attention and MLP in parallel or in sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class GPTNeoXLayout(Layout):
    model_type = "gpt_neox"

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.num_hidden_layers)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.intermediate_size)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(config.max_position_embeddings)

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.gpt_neox.layers

    def projection(self, block: HFModule) -> nn.Module:
        return block.mlp.dense_4h_to_h

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.gpt_neox.final_layer_norm

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return model.gpt_neox.emb_dropout(model.gpt_neox.embed_in(tokens))

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {
            "position_ids": positions,
            "position_embeddings": model.gpt_neox.rotary_emb(hidden, position_ids=positions),
        }

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        return block(hidden, layer_past=cache, attention_mask=mask, **shared)


LAYOUT = GPTNeoXLayout()
