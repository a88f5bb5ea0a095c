"""Stage ``factor``: what must be preserved, factorised once for every edit that preserves it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.pipeline.layers import layer_artifacts
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.factoring.factorisation import Statistics, factorisation
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["Factors", "factor", "factor_series"]


@dataclass(frozen=True)
class Factors:
    """The factorised preservation operators of a method.

    Attributes:
        series: of the layers.
        layers: the artifact of each.
        bench: of the run, whose settings make operators of them.
    """

    series: Series
    layers: dict[int, Artifact]
    bench: Bench

    def operator(self, layer: int) -> PreservationOperator:
        """The preservation operator of ``layer``.

        Raises:
            InputError: it would let nothing be written.
        """
        return factorisation(self.bench).operator(self.bench, self.layers[layer])

    def primary_directions(self, layer: int) -> Tensor | None:
        """P_r of a low-rank model, (d_in, r) float64 orthonormal; ``None`` for a method without one."""
        return factorisation(self.bench).primary_directions(self.bench, self.layers[layer])


def factor_series(bench: Bench, source: str | None) -> Series:
    """The factors of a series of covariances or keys, by its digest; of none where the method reads no keys."""
    return factorisation(bench).series(bench, source)


@stage("factor")
def factor(bench: Bench, statistics: Statistics) -> Outcome[Factors]:
    """Factorise what must be preserved at every edited layer.

    Raises:
        InputError: that cannot be done; says the layer, and what would help.
    """
    kind = factorisation(bench)
    series = factor_series(bench, statistics.series.digest if statistics else None)

    def build(draft: Draft, layer: int) -> None:
        kind.build(bench, draft, layer, statistics)

    found, any_built = layer_artifacts(bench, "factor", series, bench.layers, build)
    return Outcome(
        Factors(series, found, bench),
        series.address,
        any_built,
        {
            "bytes": sum(artifact.manifest.size for artifact in found.values()),
            **{
                f"{name}/layer_{layer}": artifact.summary[name]
                for name in kind.measured
                for layer, artifact in found.items()
            },
        },
    )
