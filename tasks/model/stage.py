"""Stage ``model``: fingerprint the checkpoint and check its weights."""

from __future__ import annotations

from dataclasses import asdict

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.formats import save_json
from factsmith.tasks.model.cost import COST, ModelCost, model_cost
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["cost_of", "known_cost", "model"]


def known_cost(workspace: Workspace, model: Model) -> ModelCost | None:
    """The sizes of a model whose checkpoint has been checked before; ``None`` if it has not, or has changed since.

    Nothing is read but what the store remembers. To look at the model itself, its code would have to be imported, which
    takes seconds.
    """
    checkpoint = model.checkpoint
    known = workspace.store.checksums.known
    if not checkpoint.is_here or not all(map(known, checkpoint.files)):
        return None
    artifact = workspace.store.find(model.recipe)
    found = artifact.summary.get(COST) if artifact else None
    return ModelCost(**found) if found else None


def cost_of(workspace: Workspace, model: Model) -> ModelCost:
    """The sizes of a model, which the store remembers if its checkpoint has been checked before."""
    return known_cost(workspace, model) or model_cost(model.checkpoint)


@stage("model")
def model(workspace: Workspace, model: Model) -> Outcome[Fingerprint]:
    """Fingerprint the checkpoint, and check that it has every tensor of its model and that every weight is finite.

    Raises:
        InputError: a tensor is missing or unexpected, or a weight is NaN or infinite; names it.
    """
    checkpoint = model.checkpoint
    # The source is worth recording, but it does not change the bytes: it is not part of the recipe.
    source = {"hub": checkpoint.hub.address} if checkpoint.hub else {}

    def build(draft: Draft) -> None:
        checkpoint.check_tensors()
        draft.summary = {
            "architecture": checkpoint.config.model_type,
            "parameters": checkpoint.check_weights(),
            "blocks": checkpoint.block_count,
            "key_width": checkpoint.key_width,
            "bytes": sum(file.stat().st_size for file in checkpoint.weight_files),
            **source,
        }
        draft.summary[COST] = asdict(model_cost(checkpoint))
        save_json(draft.path / "model.json", draft.summary)

    artifact, built = workspace.store.get_or_build(model.recipe, build)
    return Outcome(model.fingerprint, artifact.address, built, {"parameters": artifact.summary["parameters"]}, source)
