"""Stage ``principal directions``: the leading eigenvectors of C0 at every edited layer.

The changes of a sequence of edits are measured along them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.pipeline.layers import layer_artifacts
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.preservation.kind import PreservationKind
from factsmith.tasks.preservation.stage import Factors

__all__ = ["PrincipalDirections", "direction_series", "layers_to_decompose", "principal_directions"]

_ENERGY = 0.9
"""Share of C0's eigenvalue sum that the principal directions hold."""

_TENSORS = "directions.safetensors"
"""Holds ``directions`` (d_in, r) float64, orthonormal."""


@dataclass(frozen=True)
class PrincipalDirections:
    """The principal directions of each layer.

    Attributes:
        series: the series of the layers.
        layers: the artifact of each layer; empty if the factors hold the principal directions, or if there are none.
        factors: the factors of the method.
    """

    series: Series
    layers: Mapping[int, Artifact]
    factors: Factors

    def read(self) -> dict[int, Tensor]:
        """(d_in, r) float64 of each layer that has principal directions."""
        if self.layers:
            device = str(self.factors.device)
            return {
                layer: load_tensors(artifact.path / _TENSORS, device)["directions"]
                for layer, artifact in self.layers.items()
            }
        known = {layer: self.factors.known_directions(layer) for layer in self.factors.layers}
        return {layer: directions for layer, directions in known.items() if directions is not None}


def direction_series(factor: str) -> Series:
    """The series of the principal directions of a series of factors, given by its digest."""
    return Series("directions", 1, {"energy": _ENERGY}, {"factor": factor})


def layers_to_decompose(kind: PreservationKind, layers: Sequence[int]) -> list[int]:
    """The layers whose principal directions have to be computed: all if the factor is that of C0 itself, else none."""
    return list(layers) if kind.name == "full" else []


@stage("principal directions")
def principal_directions(workspace: Workspace, factors: Factors) -> Outcome[PrincipalDirections]:
    """Compute the fewest eigenvectors of C0 that hold 90 % of its eigenvalue sum, at every edited layer.

    A low-rank model already holds its own, P_r. The null space of C0 and the identity have none.
    """
    series = direction_series(factors.series.digest)

    def build(draft: Draft, layer: int) -> None:
        draft.read_from(factors.layers[layer])
        operator = factors.operator(layer)
        assert isinstance(operator, FullPreservation)
        directions, held = operator.principal_directions(_ENERGY)
        save_tensors(draft.path / _TENSORS, {"directions": directions})
        draft.summary = {"layer": layer, "rank": directions.shape[1], "energy": held}

    layers = layers_to_decompose(factors.kind, list(factors.layers))
    found, any_built = layer_artifacts(workspace, "principal directions", series, layers, build)
    ranks = {f"rank/layer_{layer}": float(artifact.summary["rank"]) for layer, artifact in found.items()}
    return Outcome(PrincipalDirections(series, found, factors), series.address, any_built, ranks)
