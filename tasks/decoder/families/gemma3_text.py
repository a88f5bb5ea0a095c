"""Gemma 3, text alone: Gemma 2's blocks with norms on queries and keys, and no cap.

Most blocks use sliding-window attention. They have rotary angles of their own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from factsmith.tasks.decoder.families.gemma2 import Gemma2Layout
from factsmith.tasks.decoder.layout import HFModel, HFModule
from factsmith.tasks.decoder.prefix_cache import PrefixCache


class Gemma3TextLayout(Gemma2Layout):
    model_type = "gemma3_text"
    attention_implementation = "sdpa"

    def shared(self, model: HFModel, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        kinds = sorted(set(model.config.layer_types))
        return {kind: model.model.rotary_emb(hidden, positions, kind) for kind in kinds}

    def run_block(
        self, block: HFModule, hidden: Tensor, mask: Tensor | None, cache: PrefixCache | None, shared: dict[str, Any]
    ) -> Tensor:
        angles = shared[block.self_attn.layer_type]
        return block(hidden, past_key_values=cache, attention_mask=mask, position_embeddings=angles)


LAYOUT = Gemma3TextLayout()
