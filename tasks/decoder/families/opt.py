"""OPT: learned positions that begin at 2, pre-norm blocks, ``Linear`` projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class OPTLayout(Layout):
    model_type = "opt"

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.num_hidden_layers)

    def key_width(self, config: PretrainedConfig) -> int:
        return int(config.ffn_dim)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(config.max_position_embeddings)

    def check(self, config: PretrainedConfig) -> None:
        if not config.do_layer_norm_before or config._remove_final_layer_norm:
            raise InputError(
                "An OPT whose blocks normalise their output, as OPT-350m, cannot be edited: nothing that the MLP adds "
                "reaches the next block as it is.",
                got=f"do_layer_norm_before={config.do_layer_norm_before}",
                expected="do_layer_norm_before=true and a final norm",
                remedy="use another size of OPT",
            )
        if config.word_embed_proj_dim != config.hidden_size:
            raise InputError(
                "An OPT with embeddings of another width than its blocks cannot be edited.",
                got=f"word_embed_proj_dim={config.word_embed_proj_dim}",
                expected=str(config.hidden_size),
                remedy="use another size of OPT",
            )

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.model.decoder.layers

    def projection(self, block: HFModule) -> nn.Module:
        return block.fc2

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.model.decoder.final_layer_norm

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        embedded = model.model.decoder.embed_tokens(tokens)
        return embedded + model.model.decoder.embed_positions(None, position_ids=positions).to(embedded.device)

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        return block(hidden, past_key_values=cache, attention_mask=mask)


LAYOUT = OPTLayout()
