"""Stage ``covariance``: C0, mean and count of the first rows of each layer's stored keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.keys.stage import KeyStream
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = [
    "ROWS_PER_UPDATE",
    "Covariances",
    "covariance",
    "covariance_series",
    "load_moments",
    "made_with",
    "product_dtype",
    "save_moments",
]

_TENSORS = "moments.safetensors"
"""Holds ``covariance`` (d_k, d_k) and ``mean`` (d_k,), float64."""

ROWS_PER_UPDATE = 1024
"""Keys that are added to the moments in one product."""


@dataclass(frozen=True)
class Covariances:
    """C0 of each edited layer.

    Attributes:
        series: the series of the layers.
        layers: the artifact of each layer.
        held: what was built by this process and is still on its device, by layer.
    """

    series: Series
    layers: Mapping[int, Artifact]
    held: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def moments(self, layer: int, device: torch.device) -> Mapping[str, Tensor]:
        """``covariance`` (d_k, d_k) and ``mean`` (d_k,) of a layer, float64."""
        return self.held.get(layer) or load_moments(self.layers[layer], device)


def covariance_series(keys: str, count: int) -> Series:
    """The series of C0 of the first ``count`` rows of a series of keys, given by its digest."""
    return Series("covariance", 1, {"tokens": count}, {"keys": keys})


def product_dtype(workspace: Workspace) -> torch.dtype:
    """The data type of the products that C0 is summed from: as set, or what is quick on the device of the run."""
    name = workspace.runtime.products
    if name == "auto":
        name = "float32" if workspace.device.type == "cuda" else "float64"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def save_moments(draft: Draft, layer: int, moments: Moments) -> dict[str, Tensor]:
    """Write the moments of ``layer`` into ``draft``. Returns them as ``load_moments`` would."""
    found = {"covariance": moments.covariance, "mean": moments.mean}
    save_tensors(draft.path / _TENSORS, found)
    draft.summary = {"layer": layer, "tokens": moments.count, "width": moments.width}
    return found


def made_with(moments: Moments) -> dict[str, str]:
    """How the sums were made, for the manifests."""
    return {"products": str(moments.products).removeprefix("torch.")}


def load_moments(artifact: Artifact, device: torch.device) -> dict[str, Tensor]:
    """``covariance`` (d_k, d_k) and ``mean`` (d_k,) of a layer, float64."""
    return load_tensors(artifact.path / _TENSORS, str(device))


@stage("covariance")
def covariance(workspace: Workspace, keys: KeyStream, count: int) -> Outcome[Covariances]:
    """Moments of the first ``count`` stored keys of every edited layer.

    Rows are added in fixed groups, in their order, so that the same keys give the same bytes.

    Raises:
        InputError: stored keys are not finite.
    """
    series = covariance_series(keys.series.digest, count)
    held: dict[int, dict[str, Tensor]] = {}
    with progress("covariance", count * len(keys.shards)) as advance:

        def build(draft: Draft, layer: int) -> None:
            moments = Moments(keys.width, workspace.device, product_dtype(workspace))
            for shard, rows in keys.rows(layer, count):
                draft.read_from(shard)
                for first in range(0, len(rows), ROWS_PER_UPDATE):
                    moments.update(torch.from_numpy(rows[first : first + ROWS_PER_UPDATE]))
                advance(len(rows))
            if not torch.isfinite(moments.sum).all():
                raise InputError(f"Stored keys of layer {layer} hold NaN or infinity.", got=str(draft.lineage))
            saved = save_moments(draft, layer, moments)
            if workspace.can_hold(saved["covariance"].nbytes):
                held[layer] = saved
            draft.made = {**workspace.made, **made_with(moments)}

        recipes = {layer: series.member(layer=layer) for layer in keys.shards}
        found, any_built = workspace.store.get_or_build_each(recipes, build)
    return Outcome(
        Covariances(series, found, held),
        series.address,
        any_built,
        {"tokens": count, "bytes": sum(artifact.manifest.size for artifact in found.values())},
    )
