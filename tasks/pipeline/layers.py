"""What a stage builds of every edited layer, an artifact each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["layer_artifacts"]


def layer_artifacts(
    bench: Bench, name: str, series: Series, layers: Sequence[int], build: Callable[[Draft, int], None]
) -> tuple[dict[int, Artifact], bool]:
    """The artifact of each of ``layers``, and whether any had to be built.

    Args:
        bench: of the run.
        name: of the stage, for bars.
        series: of the layers.
        layers: in the order they are built in.
        build: writes the artifact of a layer into a draft.
    """
    found: dict[int, Artifact] = {}
    any_built = False
    with work(name, len(layers)) as advance:
        for layer in layers:

            def write(draft: Draft, layer: int = layer) -> None:
                draft.made = bench.made
                build(draft, layer)

            found[layer], built = bench.store.get_or_build(series.member(layer=layer), write)
            any_built |= built
            advance(1)
    return found, any_built
