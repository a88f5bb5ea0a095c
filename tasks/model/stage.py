"""Stage ``model``: the checkpoint, looked at once, and the names by which later stages know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factsmith.artifacts.formats import save_json
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.artifacts.store import Draft
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["ModelName", "model", "model_name", "model_recipe"]


@dataclass(frozen=True)
class ModelName:
    """What decides the numbers a model gives.

    Attributes:
        weights: digest of the checkpoint's config and weight files.
        tokenizer: digest of the tokenizer's files.
        dtype: the weights are run in.
        attention: implementation of it.
    """

    weights: str
    tokenizer: str
    dtype: str
    attention: str

    @property
    def parameters(self) -> dict[str, Any]:
        """For the recipes of whatever a forward pass makes."""
        return {"dtype": self.dtype, "attention": self.attention}

    @property
    def inputs(self) -> dict[str, str]:
        return {"model": self.weights, "tokenizer": self.tokenizer}


def model_recipe(bench: Bench) -> Recipe:
    """The checkpoint, by the checksums of its config and weights."""
    checkpoint = bench.checkpoint
    files = [checkpoint.path / "config.json", *checkpoint.weight_files]
    return Series("model", 1, {"files": {file.name: bench.store.checksums.sha256(file) for file in files}}).member()


def model_name(bench: Bench, weights: str) -> ModelName:
    """The names that later stages know the checkpoint by; ``weights`` is the digest of ``model_recipe``."""
    files = {file.name: bench.store.checksums.sha256(file) for file in bench.checkpoint.tokenizer_files}
    attention = bench.checkpoint.layout.attention_implementation
    return ModelName(weights, digest_of(files), bench.settings.model.dtype, attention)


@stage("model")
def model(bench: Bench) -> Outcome[ModelName]:
    """Fingerprint the checkpoint and see that every weight is a number.

    Raises:
        InputError: NaN or infinity in a weight; names the tensor.
    """
    checkpoint = bench.checkpoint
    # Where the bytes came from is worth knowing, but is not what they are: it is no part of the recipe.
    source = {"hub": checkpoint.hub.address} if checkpoint.hub else {}

    def build(draft: Draft) -> None:
        draft.summary = {
            "architecture": checkpoint.config.model_type,
            "parameters": checkpoint.check_weights(),
            "blocks": checkpoint.block_count,
            "key_width": checkpoint.key_width,
            "bytes": sum(file.stat().st_size for file in checkpoint.weight_files),
            **source,
        }
        save_json(draft.path / "model.json", draft.summary)

    artifact, built = bench.store.get_or_build(model_recipe(bench), build)
    return Outcome(
        model_name(bench, artifact.digest),
        artifact.address,
        built,
        {"parameters": artifact.summary["parameters"]},
        source,
    )
