"""Stage ``directions``: the leading directions of the corpus's keys, along which a sequence's changes are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.pipeline.layers import layer_artifacts
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.preservation.stage import Factors

__all__ = ["ENERGY", "Directions", "direction_layers", "direction_series", "directions"]

ENERGY = 0.9
"""Share of C0's eigenvalue sum that the leading directions hold."""

TENSORS = "directions.safetensors"
"""Holds ``directions`` (d_in, r) float64, orthonormal."""


@dataclass(frozen=True)
class Directions:
    """The leading directions of each layer.

    Attributes:
        series: of the layers.
        layers: the artifact of each; none where the factors themselves tell them, or nothing does.
        factors: of the method.
    """

    series: Series
    layers: Mapping[int, Artifact]
    factors: Factors

    def read(self) -> dict[int, Tensor]:
        """(d_in, r) float64 of each layer that has them."""
        if self.layers:
            device = str(self.factors.bench.device)
            return {
                layer: load_tensors(artifact.path / TENSORS, device)["directions"]
                for layer, artifact in self.layers.items()
            }
        told = {layer: self.factors.primary_directions(layer) for layer in self.factors.layers}
        return {layer: found for layer, found in told.items() if found is not None}


def direction_series(factor: str) -> Series:
    """The leading directions of what a series of factors holds, by its digest."""
    return Series("directions", 1, {"energy": ENERGY}, {"factor": factor})


def direction_layers(bench: Bench) -> list[int]:
    """The layers whose directions are to be computed: all, where what is preserved is C0 whole."""
    return bench.layers if bench.settings.method.preservation == "full" else []


@stage("directions")
def directions(bench: Bench, factors: Factors) -> Outcome[Directions]:
    """At every edited layer, as few of C0's eigenvectors as hold ``ENERGY``.

    A low-rank model tells its own, P_r; a null space of C0 and a preservation of nothing have none.
    """
    series = direction_series(factors.series.digest)

    def build(draft: Draft, layer: int) -> None:
        draft.read_from(factors.layers[layer])
        operator = factors.operator(layer)
        assert isinstance(operator, FullPreservation)
        leading, held = operator.leading_directions(ENERGY)
        save_tensors(draft.path / TENSORS, {"directions": leading})
        draft.summary = {"layer": layer, "rank": leading.shape[1], "energy": held}

    found, any_built = layer_artifacts(bench, "directions", series, direction_layers(bench), build)
    ranks = {f"rank/layer_{layer}": float(artifact.summary["rank"]) for layer, artifact in found.items()}
    return Outcome(Directions(series, found, factors), series.address, any_built, ranks)
