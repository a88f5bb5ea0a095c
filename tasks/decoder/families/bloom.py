"""BLOOM: ALiBi positions, attention and MLP in sequence, ``Linear`` projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import HFModel, HFModule, Layout, causal_mask, penalty, reach
from factsmith.tasks.decoder.prefix_cache import PrefixCache

_TRAINED = 2048
"""Tokens of the texts that BLOOM was trained on. Configs that were saved by newer programs do not say it."""


class BloomLayout(Layout):
    model_type = "bloom"
    attention_implementation = "eager"  # The only implementation for BLOOM.

    def block_count(self, config: PretrainedConfig) -> int:
        return int(config.n_layer)

    def key_width(self, config: PretrainedConfig) -> int:
        return 4 * int(config.hidden_size)

    def context_length(self, config: PretrainedConfig) -> int:
        return int(getattr(config, "seq_length", _TRAINED))

    def check(self, config: PretrainedConfig) -> None:
        if config.slow_but_exact and config.pretraining_tp > 1:
            raise InputError(
                "A BLOOM with slow_but_exact cannot be edited, because its output projections do not run as modules.",
                remedy="set slow_but_exact to false in config.json",
            )

    def check_gguf(self, config: PretrainedConfig) -> None:
        raise InputError(
            "A GGUF file of a BLOOM cannot be edited, because transformers does not read how its tokenizer splits "
            "text from it.",
            remedy="use the safetensors checkpoint that the file was made from",
        )

    def blocks(self, model: HFModel) -> nn.ModuleList:
        return model.transformer.h

    def projection(self, block: HFModule) -> nn.Module:
        return block.mlp.dense_4h_to_h

    def attention(self, block: HFModule) -> nn.Module:
        # The attention as a whole also adds the residual stream.
        return block.self_attention.dense

    def final_norm(self, model: HFModel) -> nn.Module:
        return model.transformer.ln_f

    def embed(self, model: HFModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return model.transformer.word_embeddings_layernorm(model.transformer.word_embeddings(tokens))

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {"causal": causal_mask(hidden)}

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        mask = shared["causal"] if mask is None else mask
        alibi = build_alibi_tensor(reach(mask, len(hidden)), block.num_heads, hidden.dtype)
        return block(hidden, layer_past=cache, attention_mask=penalty(mask), alibi=alibi)[0]


LAYOUT = BloomLayout()
