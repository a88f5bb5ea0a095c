"""Stage ``covariance``: C0, mean and count of the first rows of each layer's stored keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, Moments, SectionSums, grouped, sections
from factsmith.tasks.covariance.packing import packed, unpacked
from factsmith.tasks.engine.workers_stage import Worker, workers
from factsmith.tasks.keys.stage import KeyStream
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = [
    "TENSORS",
    "Covariances",
    "covariance",
    "covariance_series",
    "load_moments",
    "new_moments",
    "save_moments",
]

TENSORS = "moments.safetensors"
"""Holds ``mean`` (d_k,), if it is known, and C0 as ``packed`` gives it, float64."""


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
        """``covariance`` (d_k, d_k) and, if it is known, ``mean`` (d_k,) of a layer, float64."""
        return self.held.get(layer) or load_moments(self.layers[layer], device)


def covariance_series(keys: str, count: int) -> Series:
    """The series of C0 of the first ``count`` rows of a series of keys, given by its digest."""
    return Series("covariance", 1, {"tokens": count}, {"keys": keys})


def new_moments(workspace: Workspace, width: int, device: torch.device | None = None) -> Moments:
    """Moments on ``device`` or that of the run, of products as ``runtime.products`` sets them, or as is quick there."""
    device = device or workspace.device
    name = workspace.runtime.products
    if name == "auto":
        name = "float32" if device.type == "cuda" else "float64"
    return Moments(width, device, getattr(torch, name))


def save_moments(
    workspace: Workspace, draft: Draft, layer: int, moments: Moments, held: dict[int, Mapping[str, Tensor]]
) -> None:
    """Write the moments of ``layer`` into ``draft``, and add them to ``held`` if they may stay on the device."""
    found = {"covariance": moments.covariance, "mean": moments.mean}
    save_tensors(draft.path / TENSORS, {"mean": found["mean"], **packed(found["covariance"])})
    if found["covariance"].device == workspace.device and workspace.can_hold(found["covariance"].nbytes):
        held[layer] = found
    draft.summary = {"layer": layer, "tokens": moments.count, "width": moments.width}
    draft.made = {**workspace.made, "products": str(moments.products).removeprefix("torch.")}


def load_moments(artifact: Artifact, device: torch.device) -> dict[str, Tensor]:
    """``covariance`` (d_k, d_k) and, if it is known, ``mean`` (d_k,) of a layer, float64."""
    tensors = load_tensors(artifact.path / TENSORS, str(device))
    mean = {"mean": tensors.pop("mean")} if "mean" in tensors else {}
    # Earlier versions stored the whole matrix.
    return {"covariance": tensors["covariance"] if "covariance" in tensors else unpacked(tensors), **mean}


def _rows(draft: Draft, keys: KeyStream, layer: int, stop: int, start: int) -> Iterator[dict[int, Tensor]]:
    for shard, rows in keys.rows(layer, stop, start):
        draft.read_from(shard)
        yield {layer: torch.from_numpy(rows)}


@stage("covariance")
def covariance(workspace: Workspace, model: Model, keys: KeyStream, count: int) -> Outcome[Covariances]:
    """Moments of the first ``count`` stored keys of every edited layer.

    Rows are added in fixed groups, in their order, and fixed sections, so that the same keys give the same bytes.

    Workers of ``runtime.engine=ray`` take the layers.

    Raises:
        InputError: stored keys are not finite.
    """
    series = covariance_series(keys.series.digest, count)
    recipes = {layer: series.member(layer=layer) for layer in keys.shards}
    spans = sections(keys.tokens.stops, keys.width, count)
    held: dict[int, Mapping[str, Tensor]] = {}
    shared = 0
    with progress("covariance", count * len(keys.shards)) as advance:
        pool = workers(workspace, model)
        if pool is not None:
            absent = [layer for layer, recipe in recipes.items() if workspace.store.find(recipe) is None]
            shares = [_Share(replace(keys, shards={layer: keys.shards[layer]}), spans, layer) for layer in absent]
            shared = len(list(pool.each(_sum_layer, shares, advance)))

        def build(draft: Draft, layer: int) -> None:
            _build(draft, workspace, keys, spans, layer, held, advance)

        found, any_built = workspace.store.get_or_build_each(recipes, build)
    return Outcome(
        Covariances(series, found, held),
        series.address,
        any_built or shared > 0,
        {"tokens": count, "bytes": sum(artifact.manifest.size for artifact in found.values())},
    )


@dataclass(frozen=True)
class _Share:
    """A worker's share: the kept keys of a layer, and the sections that they are summed up in."""

    keys: KeyStream
    spans: Sequence[tuple[int, int]]
    layer: int


def _sum_layer(worker: Worker, share: _Share, advance: Callable[[int], None]) -> None:
    """Build C0 of a layer in the process of a worker."""

    def build(draft: Draft) -> None:
        _build(draft, worker.workspace, share.keys, share.spans, share.layer, {}, advance)

    series = covariance_series(share.keys.series.digest, share.spans[-1][1])
    worker.workspace.store.get_or_build(series.member(layer=share.layer), build)


def _build(
    draft: Draft,
    workspace: Workspace,
    keys: KeyStream,
    spans: Sequence[tuple[int, int]],
    layer: int,
    held: dict[int, Mapping[str, Tensor]],
    advance: Callable[[int], None],
) -> None:
    sums = SectionSums(partial(new_moments, workspace, keys.width))
    for start, stop in spans:
        for group in grouped(_rows(draft, keys, layer, stop, start), ROWS_PER_UPDATE):
            sums.update(group[layer])
            advance(len(group[layer]))
        sums.close()
    moments = sums.total
    assert moments is not None
    if not torch.isfinite(moments.sum).all():
        raise InputError(f"Stored keys of layer {layer} hold NaN or infinity.", got=str(draft.lineage))
    save_moments(workspace, draft, layer, moments, held)
