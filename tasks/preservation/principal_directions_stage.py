"""Stage ``principal directions``: the leading eigenvectors of C0 at every edited layer.

The changes of a sequence of edits are measured along them. They are those of C0 whatever the method makes of it, so
that methods that read the same tokens are measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.tasks.covariance.spectrum import leading_eigenvectors, rank_of_energy
from factsmith.tasks.pipeline.layers import layer_artifacts
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.preservation.kind import KeyMoments, Source
from factsmith.tasks.preservation.stage import FactorSource, read_statistics

__all__ = ["MOST", "PrincipalDirections", "direction_series", "principal_directions"]

_ENERGY = 0.9
"""Share of C0's eigenvalue sum that the principal directions hold, if MOST of them can."""

MOST = 256
"""Most principal directions of a layer."""

_ROWS = 2048
"""Keys that are held in float64 at once: 235 MB for a d_k of 14,336, of which all would take 1.6 GB."""

_TENSORS = "directions.safetensors"
"""Holds ``directions`` (d_in, r) float64, orthonormal."""


@dataclass(frozen=True)
class PrincipalDirections:
    """The principal directions of each layer.

    Attributes:
        series: the series of the layers.
        layers: the artifact of each layer; empty if the method reads no keys.
        device: where the tensors go.
    """

    series: Series
    layers: Mapping[int, Artifact]
    device: torch.device

    def read(self) -> dict[int, Tensor]:
        """(d_in, r) float64 of each layer that has principal directions."""
        return {
            layer: load_tensors(artifact.path / _TENSORS, str(self.device))["directions"]
            for layer, artifact in self.layers.items()
        }


def direction_series(source: Source, digest: str | None, tokens: int) -> Series:
    """The series of the principal directions.

    Args:
        source: what the method's factors are made from.
        digest: digest of the series of covariances or of keys; ``None`` if the factors are made from nothing.
        tokens: number of keys, if they are read themselves.
    """
    inputs = {} if digest is None else {str(source): digest}
    counted = {"tokens": tokens} if source == "keys" else {}
    return Series("directions", 2, {"energy": _ENERGY, "most": MOST, **counted}, inputs)


@stage("principal directions")
def principal_directions(
    workspace: Workspace, layers: list[int], kind: Source, source: FactorSource, tokens: int
) -> Outcome[PrincipalDirections]:
    """Compute the fewest eigenvectors of C0 that hold 90 % of its eigenvalue sum, but at most 256, at every layer.

    Args:
        workspace: the run's workspace.
        layers: the edited layers, ascending.
        kind: what the method's factors are made from.
        source: the result of the stage that made it.
        tokens: number of keys that it covers.
    """
    series = direction_series(kind, source.series.digest if source else None, tokens)

    def build(draft: Draft, layer: int) -> None:
        statistics, sources = read_statistics(source, layer, tokens, workspace.device)
        draft.read_from(*sources)
        assert statistics is not None
        product, width, total = _covariance(statistics)
        values, vectors = leading_eigenvectors(product, width, MOST, workspace.device)
        rank = min(rank_of_energy(values, _ENERGY, total), len(values))
        save_tensors(draft.path / _TENSORS, {"directions": vectors[:, :rank].contiguous()})
        draft.summary = {"layer": layer, "rank": rank, "energy": float(values[:rank].sum() / total)}

    found, any_built = layer_artifacts(workspace, "principal directions", series, layers if source else [], build)
    ranks = {f"rank/layer_{layer}": float(artifact.summary["rank"]) for layer, artifact in found.items()}
    return Outcome(PrincipalDirections(series, found, workspace.device), series.address, any_built, ranks)


def _covariance(statistics: KeyMoments | Tensor) -> tuple[Callable[[Tensor], Tensor], int, float]:
    """Products with C0, its width and its trace. C0 of keys that are read themselves is never formed."""
    if isinstance(statistics, KeyMoments):
        matrix = statistics.covariance
        return matrix.__matmul__, len(matrix), float(matrix.trace())

    def product(vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for part in statistics.split(_ROWS):
            rows = part.double()
            total.addmm_(rows.T, rows @ vectors)
        return total / len(statistics)

    squares = sum(float(part.double().square().sum()) for part in statistics.split(_ROWS))
    return product, statistics.shape[1], squares / len(statistics)
