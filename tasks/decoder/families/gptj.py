"""GPT-J: rotary positions inside the attention, attention and MLP in parallel, ``Linear`` projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout, causal_mask, penalty
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class GPTJLayout(Layout):
    model_type = "gptj"
    attention_implementation = "eager"  # The only implementation for GPT-J that runs everywhere.

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.n_layer)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.n_inner or 4 * config.n_embd)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(config.n_positions)

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.transformer.h

    def projection(self, block: HFModule) -> nn.Module:
        return block.mlp.fc_out

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.transformer.ln_f

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return model.transformer.drop(model.transformer.wte(tokens))

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {"position_ids": positions, "causal": penalty(causal_mask(hidden))}

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        # GPT-J's attention has no causal mask of its own. It adds the given mask to its scores.
        added = shared["causal"] if mask is None else penalty(mask)
        return block(hidden, layer_past=cache, attention_mask=added, position_ids=shared["position_ids"])[0]


LAYOUT = GPTJLayout()
