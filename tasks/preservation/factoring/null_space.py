"""``method.preservation=null_space``: a basis of C0's null space, or of what a low-rank model holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.covariance.stage import TENSORS as MOMENTS
from factsmith.tasks.covariance.stage import Covariances
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.settings import MethodSettings
from factsmith.tasks.preservation.factoring.factorisation import Cost, Factorisation, Statistics
from factsmith.tasks.preservation.factoring.low_rank import LowRank
from factsmith.tasks.preservation.null_space import NullSpace, NullSpacePreservation

__all__ = ["choose"]

TENSORS = "null_space.safetensors"
"""Holds ``basis`` (d_k, r), float64, orthonormal: the smaller one of the null space's and of its complement's."""


class _OfCovariance(Factorisation):
    """AlphaEdit's: eigenvectors of C0 whose eigenvalue is below ``threshold``."""

    measured = ("rank", "energy")

    def series(self, bench: Bench, source: str | None) -> Series:
        parameters = {"preservation": "null_space", "threshold": bench.settings.method.null_space.threshold}
        return Series("factor", 1, parameters, {"covariance": str(source)})

    def build(self, bench: Bench, draft: Draft, layer: int, statistics: Statistics) -> None:
        assert isinstance(statistics, Covariances)
        source = statistics.layers[layer]
        draft.read_from(source)
        covariance = load_tensors(source.path / MOMENTS, str(bench.device), ["covariance"])["covariance"]
        space = NullSpace.of_covariance(covariance, bench.settings.method.null_space.threshold)
        _check_not_empty(bench, layer, space, "a higher method.null_space.threshold")
        held = float((space.basis * (covariance @ space.basis)).sum() / covariance.trace())
        save_tensors(draft.path / TENSORS, {"basis": space.basis})
        draft.summary = {
            "layer": layer,
            "width": len(covariance),
            "rank": len(covariance) - space.dimensions,
            "energy": held if space.complement else 1 - held,
            "complement": space.complement,
        }

    def scaling(self, bench: Bench) -> Mapping[str, Any]:
        return {"l2": bench.settings.method.null_space.l2}

    def operator(self, bench: Bench, artifact: Artifact) -> NullSpacePreservation:
        basis = load_tensors(artifact.path / TENSORS, str(bench.device))["basis"]
        space = NullSpace(basis, artifact.summary["complement"])
        return NullSpacePreservation(space, bench.settings.method.null_space.l2)

    def cost(self, bench: Bench, width: int) -> Cost:
        return Cost(9.0 * width**3, 4 * width**2, 4 * 8 * width**2, 2.0 * width**2)


class _OfLowRank(LowRank):
    """AlphaEdit-F's: all that is orthogonal to U. The factors are those of ``method.preservation=low_rank``."""

    def scaling(self, bench: Bench) -> Mapping[str, Any]:
        return {"l2": bench.settings.method.null_space.l2}

    def operator(self, bench: Bench, artifact: Artifact) -> NullSpacePreservation:
        space = NullSpace(self.primary_directions(bench, artifact), complement=True)
        _check_not_empty(bench, artifact.summary["layer"], space, "a lower method.low_rank.energy or rank")
        return NullSpacePreservation(space, bench.settings.method.null_space.l2)


def choose(method: MethodSettings) -> Factorisation:
    return _OfLowRank() if method.null_space.complement_of == "low_rank" else _OfCovariance()


def _check_not_empty(bench: Bench, layer: int, space: NullSpace, remedy: str) -> None:
    if not space.dimensions:
        raise InputError(
            f"Layer {layer} of {bench.settings.model.name} has no direction that may be written.",
            expected="a null space of one dimension or more",
            remedy=f"set {remedy}",
        )
