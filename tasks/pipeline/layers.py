"""Stages that build one artifact for each edited layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
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
    found: dict[int, Artifact] = {}
    any_built = False
    with progress(name, len(layers)) as advance:
        for layer in layers:

            def write(draft: Draft, layer: int = layer) -> None:
                draft.made = workspace.made
                build(draft, layer)

            found[layer], built = workspace.store.get_or_build(series.member(layer=layer), write)
            any_built |= built
            advance(1)
    return found, any_built
