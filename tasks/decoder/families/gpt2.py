"""GPT-2: learned positions, pre-norm blocks, ``Conv1D`` projections stored (d_in, d_out)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class GPT2Layout(Layout):
    model_type = "gpt2"

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.n_layer)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.n_inner or 4 * config.n_embd)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(config.n_positions)

    def check(self, config: PretrainedConfig) -> None:
        if config.add_cross_attention:
            raise InputError("A GPT-2 with cross-attention cannot be edited, because it is not a decoder-only model.")

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.transformer.h

    def projection(self, block: HFModule) -> nn.Module:
        return block.mlp.c_proj

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.transformer.ln_f

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        embedded = model.transformer.wte(tokens)
        return model.transformer.drop(embedded + model.transformer.wpe(positions).to(embedded.device))

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        return block(hidden, past_key_values=cache, attention_mask=mask)


LAYOUT = GPT2Layout()
