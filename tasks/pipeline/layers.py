"""Stages that build one artifact for each edited layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.recipe import Series
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["layer_artifacts"]


def layer_artifacts(
    workspace: Workspace, name: str, series: Series, layers: Sequence[int], build: Callable[[Draft, int], None]
) -> tuple[dict[int, Artifact], bool]:
    """Get or build the artifact of each layer.

    Args:
        workspace: the run's workspace.
        name: the stage's name, for progress bars.
        series: the series that holds the artifacts of all layers.
        layers: layers, in the order in which they are built.
        build: writes the artifact of a layer into a draft.

    Returns:
        The artifact of each layer, and whether any had to be built.
    """
    recipes = {layer: series.member(layer=layer) for layer in layers}
    with progress(name, len(layers)) as advance:

        def write(draft: Draft, layer: int) -> None:
            draft.made = workspace.made
            build(draft, layer)
            advance(1)

        return workspace.store.get_or_build_each(recipes, write)
