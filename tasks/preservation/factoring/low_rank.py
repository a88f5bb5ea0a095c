"""``method.preservation=low_rank``: the keys' covariance as U U^T + D, fused with the layer's own projection.

The factors are those of MEMIT-F and EMMET-F at every lambda, and their U is what AlphaEdit-F keeps out of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.covariance.stage import TENSORS as MOMENTS
from factsmith.tasks.covariance.stage import Covariances
from factsmith.tasks.keys.stage import KeyStream
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.settings import MethodSettings
from factsmith.tasks.preservation.factoring.factorisation import Cost, Factorisation, Source, Statistics
from factsmith.tasks.preservation.low_rank import (
    LowRankModel,
    LowRankPreservation,
    RankError,
    RankRule,
    fused_covariance,
    fused_factor,
    prior,
)
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["LowRank", "choose"]

TENSORS = "low_rank.safetensors"
"""Holds ``basis`` P_r (d_k, r), ``values`` Lambda_r (r,), ``diagonal`` D (d_k,) and the lower Cholesky factor ``core``
(r, r) of I + U^T D^-1 U, float64."""

FEW = 10
"""Samples, in multiples of d_k, below which the projection is fused in unless ``prior_fraction`` says otherwise."""

FRACTION_OF_FEW = 0.05


class LowRank(Factorisation):
    """MEMIT-F's and EMMET-F's."""

    measured = ("rank", "energy")

    def source(self, bench: Bench) -> Source:
        """The keys, where they are too few to fill the covariance and are kept: then it is never formed."""
        few = _columns(bench) < bench.checkpoint.key_width
        return "keys" if few and bench.settings.corpus.keep_keys else "covariance"

    def series(self, bench: Bench, source: str | None) -> Series:
        settings, fraction = bench.settings.method.low_rank, _fraction(bench)
        parameters: dict[str, Any] = {"preservation": "low_rank", "prior_fraction": fraction, "floor": settings.floor}
        if not settings.centred:
            parameters["centred"] = False
        if fraction:
            parameters["prior_rank"] = _prior_rank(bench)
        if settings.rank is not None:
            parameters["rank"] = settings.rank
        else:
            parameters |= {"energy": settings.energy, "energy_of": settings.energy_of}
        kind = self.source(bench)
        if kind == "keys":
            parameters["n_samples"] = settings.n_samples
        return Series("factor", 1, parameters, {kind: str(source)})

    def build(self, bench: Bench, draft: Draft, layer: int, statistics: Statistics) -> None:
        settings, fraction = bench.settings.method.low_rank, _fraction(bench)
        structure = None
        if fraction:
            structure = prior(bench.decoder.weight(layer).detach().to(bench.device), _prior_rank(bench))
        rule = RankRule(settings.rank, settings.energy, settings.energy_of)
        try:
            if isinstance(statistics, KeyStream):
                keys = _sampled_keys(draft, statistics, layer, settings.n_samples).to(bench.device)
                model = LowRankModel.of_factor(
                    fused_factor(keys, structure, fraction, centred=settings.centred), rule, settings.floor
                )
            else:
                assert isinstance(statistics, Covariances)
                data = _covariance(draft, statistics.layers[layer], bench.device, centred=settings.centred)
                model = LowRankModel.of_covariance(fused_covariance(data, structure, fraction), rule, settings.floor)
        except RankError as error:
            more = ", or raise method.low_rank.n_samples" if error.rank < bench.checkpoint.key_width else ""
            raise InputError(
                f"Layer {layer} of {bench.settings.model.name}: the covariance of {settings.n_samples:,} keys has no "
                f"rank of {settings.rank:,}.",
                got=f"rank {error.rank:,}",
                remedy=f"lower method.low_rank.rank to {error.rank}{more}",
            ) from None
        save_tensors(
            draft.path / TENSORS,
            {"basis": model.basis, "values": model.values, "diagonal": model.diagonal, "core": model.core},
        )
        draft.summary = {
            "layer": layer,
            "width": len(model.basis),
            "rank": model.basis.shape[1],
            "energy": model.energy,
            "floored": model.floored,
            "prior_fraction": fraction,
        }

    def scaling(self, bench: Bench) -> Mapping[str, Any]:
        return {"preservation_weight": bench.settings.method.preservation_weight}

    def operator(self, bench: Bench, artifact: Artifact) -> PreservationOperator:
        tensors = load_tensors(artifact.path / TENSORS, str(bench.device))
        model = LowRankModel(**tensors, energy=artifact.summary["energy"], floored=artifact.summary["floored"])
        return LowRankPreservation(model, bench.settings.method.preservation_weight)

    def primary_directions(self, bench: Bench, artifact: Artifact) -> Tensor:
        return load_tensors(artifact.path / TENSORS, str(bench.device), ["basis"])["basis"]

    def cost(self, bench: Bench, width: int) -> Cost:
        thin = self.source(bench) == "keys"
        side = _columns(bench) if thin else width
        rank = min(bench.settings.method.low_rank.rank or side, side)
        flop = 9.0 * side**3 + 2.0 * width * rank**2 + rank**3 / 3
        if thin:
            flop += 2.0 * width * side * (side + rank)
        kept = 8 * (width * rank + rank**2 + width + rank)
        return Cost(flop, kept, 8 * (3 * side**2 + 2 * width * side) + kept, 4.0 * width * rank + 2 * rank**2)


def _fraction(bench: Bench) -> float:
    """``prior_fraction``, or what it is where nobody says: the paper's with few samples, 0 with ample ones."""
    settings = bench.settings.method.low_rank
    if settings.prior_fraction is not None:
        return settings.prior_fraction
    return FRACTION_OF_FEW if settings.n_samples < FEW * bench.checkpoint.key_width else 0.0


def _prior_rank(bench: Bench) -> int:
    settings = bench.settings.method.low_rank
    return settings.prior_rank or settings.rank or max(1, bench.checkpoint.key_width // 4)


def _columns(bench: Bench) -> int:
    """Of a factor of the fused covariance: samples, and the rank of the projection's part."""
    return bench.settings.method.low_rank.n_samples + (_prior_rank(bench) if _fraction(bench) else 0)


def _sampled_keys(draft: Draft, stream: KeyStream, layer: int, count: int) -> Tensor:
    parts = []
    for shard, rows in stream.rows(layer, count):
        draft.read_from(shard)
        parts.append(rows)
    found: Tensor = torch.from_numpy(np.concatenate(parts))
    return found


def _covariance(draft: Draft, source: Artifact, device: torch.device, *, centred: bool) -> Tensor:
    """C0, or the sample covariance, 1 / (n - 1), of the keys that it and the mean are of."""
    draft.read_from(source)
    moments = load_tensors(source.path / MOMENTS, str(device))
    covariance: Tensor = moments["covariance"]
    if centred:
        count, mean = source.summary["tokens"], moments["mean"]
        covariance = (covariance - mean[:, None] * mean) * (count / (count - 1))
    return covariance


def choose(method: MethodSettings) -> Factorisation:
    return LowRank()
