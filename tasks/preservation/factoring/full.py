"""``method.preservation=full``: the Cholesky factor of lambda C0 + ridge I."""

from __future__ import annotations

import logging

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.covariance.cholesky import SingularMatrixError, least_ridge
from factsmith.tasks.covariance.stage import TENSORS as MOMENTS
from factsmith.tasks.covariance.stage import Covariances
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.settings import MethodSettings
from factsmith.tasks.preservation.factoring.factorisation import Cost, Factorisation, Statistics
from factsmith.tasks.preservation.full import FullPreservation

__all__ = ["choose"]

logger = logging.getLogger(__name__)

TENSORS = "factor.safetensors"
"""Holds ``cholesky`` (d_k, d_k), float64, lower triangular."""


class _Full(Factorisation):
    measured = ("ridge",)

    def series(self, bench: Bench, source: str | None) -> Series:
        method = bench.settings.method
        parameters = {
            "preservation": "full",
            "preservation_weight": method.preservation_weight,
            "ridge": method.ridge,
        }
        return Series("factor", 2, parameters, {"covariance": str(source)})

    def build(self, bench: Bench, draft: Draft, layer: int, statistics: Statistics) -> None:
        assert isinstance(statistics, Covariances)
        source = statistics.layers[layer]
        draft.read_from(source)
        method = bench.settings.method
        matrix = load_tensors(source.path / MOMENTS, str(bench.device), ["covariance"])["covariance"]
        ridge = method.ridge
        if ridge == "auto":
            ridge = least_ridge(matrix) * method.preservation_weight
            logger.info("layer %d: ridge %.3g added to lambda C0 (method.ridge=auto)", layer, ridge)
        try:
            operator = FullPreservation.from_covariance(matrix, weight=method.preservation_weight, ridge=ridge)
        except SingularMatrixError as error:
            corpus = bench.settings.corpus
            size = f"tokens (now {corpus.tokens}) to {2 * error.size} or more"
            if corpus.tokens is None:
                setting = "auto.steps" if corpus.is_auto else "dynamic_multiplier"
                size = f"{setting} (now {corpus.multipliers[-1]:g}) to 2 or more"
            raise InputError(
                f"Layer {layer} of {bench.settings.model.name}: the covariance over {source.summary['tokens']:,} "
                f"tokens cannot be factorised.",
                got=f"rank {error.rank:,}",
                expected=f"rank {error.size:,}",
                remedy=f"raise corpus.{size}, or set method.ridge=auto",
            ) from None
        save_tensors(draft.path / TENSORS, {"cholesky": operator.factor})
        draft.summary = {"layer": layer, "width": len(operator.factor), "ridge": ridge}

    def operator(self, bench: Bench, artifact: Artifact) -> FullPreservation:
        return FullPreservation(load_tensors(artifact.path / TENSORS, str(bench.device))["cholesky"])

    def cost(self, bench: Bench, width: int) -> Cost:
        return Cost(width**3 / 3, 8 * width**2, 3 * 8 * width**2, 2 * width**2)


def choose(method: MethodSettings) -> Factorisation:
    return _Full()
