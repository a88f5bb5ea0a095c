"""Stage ``covariance``: C0, mean and count of the first rows of each layer's key stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.keys.stage import KeyStream
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["ROWS_AT_ONCE", "TENSORS", "Covariances", "covariance", "covariance_series", "save_moments"]

TENSORS = "moments.safetensors"
"""Holds ``covariance`` (d_k, d_k) and ``mean`` (d_k,), float64."""

ROWS_AT_ONCE = 1024
"""Keys that are added up in one product."""


@dataclass(frozen=True)
class Covariances:
    """C0 of each edited layer.

    Attributes:
        series: of the layers.
        layers: the artifact of each.
    """

    series: Series
    layers: dict[int, Artifact]


def covariance_series(keys: str, count: int) -> Series:
    """C0 of the first ``count`` rows of a series of keys, by its digest."""
    return Series("covariance", 1, {"tokens": count}, {"keys": keys})


def save_moments(bench: Bench, draft: Draft, layer: int, moments: Moments) -> None:
    """Write the moments of ``layer`` into ``draft``."""
    save_tensors(draft.path / TENSORS, {"covariance": moments.covariance, "mean": moments.mean})
    draft.summary = {"layer": layer, "tokens": moments.count, "width": moments.width}
    draft.made = bench.made


@stage("covariance")
def covariance(bench: Bench, stream: KeyStream, count: int) -> Outcome[Covariances]:
    """Moments of the first ``count`` keys of every edited layer, from the stored values.

    Rows are added up in a fixed grouping, in their order, so that the same keys give the same bytes.

    Raises:
        InputError: stored keys are not finite.
    """
    series = covariance_series(stream.series.digest, count)
    found: dict[int, Artifact] = {}
    any_built = False
    with work("covariance", count * len(bench.layers)) as advance:
        for layer in bench.layers:

            def build(draft: Draft, layer: int = layer) -> None:
                moments = Moments(bench.checkpoint.key_width, bench.device)
                for shard, rows in stream.rows(layer, count):
                    draft.read_from(shard)
                    for first in range(0, len(rows), ROWS_AT_ONCE):
                        moments.update(torch.from_numpy(rows[first : first + ROWS_AT_ONCE]))
                    advance(len(rows))
                if not torch.isfinite(moments.sum).all():
                    raise InputError(f"Stored keys of layer {layer} hold NaN or infinity.", got=str(draft.lineage))
                save_moments(bench, draft, layer, moments)

            found[layer], built = bench.store.get_or_build(series.member(layer=layer), build)
            any_built |= built
    return Outcome(
        Covariances(series, found),
        series.address,
        any_built,
        {"tokens": count, "bytes": sum(artifact.manifest.size for artifact in found.values())},
    )
