"""Stage ``spectrum``: the eigenvalues of every layer's C0."""

from __future__ import annotations

from torch import Tensor

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.tasks.covariance.spectrum import spectrum as eigenvalues_of
from factsmith.tasks.covariance.stage import Covariances
from factsmith.tasks.pipeline.layers import layer_artifacts
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["spectrum"]

_TENSORS = "spectrum.safetensors"
"""Holds ``eigenvalues`` (d_k,) float64, descending."""


@stage("spectrum")
def spectrum(workspace: Workspace, covariances: Covariances) -> Outcome[dict[int, Tensor]]:
    """Eigenvalues (d_k,) float64 of each layer's C0, descending."""
    series = Series("spectrum", 1, {}, {"covariance": covariances.series.digest})

    def build(draft: Draft, layer: int) -> None:
        source = covariances.layers[layer]
        draft.read_from(source)
        matrix = covariances.moments(layer, workspace.device)["covariance"]
        save_tensors(draft.path / _TENSORS, {"eigenvalues": eigenvalues_of(matrix)})
        draft.summary = {"layer": layer, "tokens": source.summary["tokens"], "width": len(matrix)}

    found, any_built = layer_artifacts(workspace, "spectrum", series, list(covariances.layers), build)
    eigenvalues = {layer: load_tensors(one.path / _TENSORS)["eigenvalues"] for layer, one in found.items()}
    return Outcome(eigenvalues, series.address, any_built)
