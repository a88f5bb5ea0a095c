"""What running a model costs, from its config alone: FLOP and bytes, before a weight is read.

A multiply-add counts as two FLOP; attention, norms and activations besides the matrix products are left out but for
the products of queries, keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from factsmith.tasks.decoder.layout import canonical_weight
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.model.checkpoint import Checkpoint

__all__ = ["ModelCost", "model_cost"]


@dataclass(frozen=True)
class ModelCost:
    """Sizes of one model.

    Attributes:
        blocks: number of them.
        width: d_model.
        key_width: d_k.
        vocabulary: tokens there are.
        parameters: all of them.
        block_products: weights of a block's matrices: half its FLOP a token.
        projection: weights of one MLP output projection.
    """

    blocks: int
    width: int
    key_width: int
    vocabulary: int
    parameters: int
    block_products: int
    projection: int

    def block_flop(self, blocks: int, tokens: int, attended: float = 0) -> float:
        """Forward FLOP of ``blocks`` blocks on ``tokens`` positions that attend to ``attended`` others on average."""
        return float(blocks) * tokens * (2 * self.block_products + 4 * attended * self.width)

    def logits_flop(self, reads: int) -> float:
        """Forward FLOP of the output embedding at ``reads`` positions."""
        return 2.0 * reads * self.vocabulary * self.width

    def key_flop(self, last_layer: int, tokens: int, attended: float) -> float:
        """Forward FLOP of a pass that stops at the projection of ``last_layer``."""
        return self.block_flop(last_layer + 1, tokens, attended) - 2.0 * tokens * self.projection


def model_cost(checkpoint: Checkpoint) -> ModelCost:
    """Measure a model that is never loaded."""
    model = empty_model(checkpoint.config)
    blocks = checkpoint.layout.blocks(model)
    matrices = [module for module in blocks[0].modules() if isinstance(module, (nn.Linear, Conv1D))]
    projection = canonical_weight(checkpoint.layout.projection(blocks[0]))
    embedding = model.get_input_embeddings().weight
    return ModelCost(
        blocks=len(blocks),
        width=projection.shape[0],
        key_width=projection.shape[1],
        vocabulary=embedding.shape[0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        block_products=sum(module.weight.numel() for module in matrices),
        projection=projection.numel(),
    )
