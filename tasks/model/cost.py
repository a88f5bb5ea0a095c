"""The cost of running a model in FLOP, and its sizes, computed from its config without reading weights.

A multiply-add counts as two FLOP. Only matrix products count: those with weights, and the attention's products of
queries with keys and of scores with values. Norms, activations and the softmax are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from factsmith.tasks.decoder.layout import HFModel, Layout, canonical_weight
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.model.checkpoint import Checkpoint

__all__ = ["COST", "ModelCost", "model_cost", "sizes"]

COST = "cost"
"""The part of a model artifact's summary that holds its ``ModelCost``."""


@dataclass(frozen=True)
class ModelCost:
    """Sizes of a model.

    Attributes:
        blocks: number of decoder blocks.
        width: d_model.
        key_width: d_k.
        vocabulary: number of tokens in the vocabulary.
        parameters: number of parameters of the model.
        block_products: number of weights in the matrices of a block, which is half its FLOP per token.
        projection: number of weights in one MLP output projection.
    """

    blocks: int
    width: int
    key_width: int
    vocabulary: int
    parameters: int
    block_products: int
    projection: int

    def block_flop(self, blocks: int, tokens: int, attended: float = 0) -> float:
        """Forward FLOP of ``blocks`` blocks at ``tokens`` positions that attend to ``attended`` others on average."""
        return float(blocks) * tokens * (2 * self.block_products + 4 * attended * self.width)

    def logits_flop(self, reads: int) -> float:
        """Forward FLOP of the output embedding at ``reads`` positions."""
        return 2.0 * reads * self.vocabulary * self.width

    def key_flop(self, last_layer: int, tokens: int, attended: float) -> float:
        """Forward FLOP of a pass that stops at the projection of ``last_layer``."""
        return self.block_flop(last_layer + 1, tokens, attended) - 2.0 * tokens * self.projection


def model_cost(checkpoint: Checkpoint) -> ModelCost:
    """The sizes of a checkpoint's model, which is not loaded."""
    return sizes(empty_model(checkpoint.config), checkpoint.layout)


def sizes(model: HFModel, layout: Layout) -> ModelCost:
    """The sizes of a transformers model, wherever its weights are."""
    blocks = layout.blocks(model)
    matrices = [module for module in blocks[0].modules() if isinstance(module, (nn.Linear, Conv1D))]
    projection = canonical_weight(layout.projection(blocks[0]))
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
