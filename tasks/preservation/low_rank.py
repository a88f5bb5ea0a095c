"""Low-rank preservation, as in MEMIT-F and EMMET-F: A = lambda (U U^T + D).

The keys' covariance is fused with the layer's own projection and modelled as U U^T + D. The factor serves every lambda,
and AlphaEdit-F writes in the complement of its U. Equations are those of "FastEdit: Low-Rank Structured Regularization
for Efficient Model Editing".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from factsmith.tasks.covariance.cholesky import solve_factored
from factsmith.tasks.covariance.eigenpairs import eigenpairs_flop
from factsmith.tasks.preservation.kind import (
    Cost,
    Factor,
    FactorisationError,
    KeyMoments,
    PreservationKind,
    Source,
    Statistics,
)
from factsmith.tasks.preservation.low_rank_model import (
    LowRankModel,
    RankError,
    RankRule,
    fused_covariance,
    fused_factor,
    prior,
)
from factsmith.tasks.preservation.operator import PreservationOperator
from factsmith.tasks.preservation.settings import PreservationSettings

__all__ = ["LowRank", "LowRankPreservation", "kind"]

_FEW = 10
"""Samples, in multiples of d_k, below which the projection is fused in unless ``prior_fraction`` is set."""

_FRACTION_OF_FEW = 0.05


@dataclass(frozen=True)
class LowRankPreservation:
    """Applies A^-1 by the Sherman-Morrison-Woodbury identity, without a (d_in, d_in) matrix.

    (U U^T + D)^-1 = D^-1 - D^-1 U (I + U^T D^-1 U)^-1 U^T D^-1 [FastEdit, appendix D].

    Attributes:
        model: U, D and the factored core.
        weight: lambda.
    """

    model: LowRankModel
    weight: float

    @cached_property
    def _factor(self) -> Tensor:
        """D^-1 U, (d_in, r)."""
        return self.model.basis * self.model.values.sqrt() / self.model.diagonal[:, None]

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B), float64."""
        keys = keys.to(self.model.basis)
        inner = solve_factored(self.model.core, self._factor.T @ keys)
        return (keys / self.model.diagonal[:, None] - self._factor @ inner) / self.weight


class LowRank(PreservationKind):
    """``method.preservation=low_rank``.

    The tensors are ``basis`` P_r (d_k, r), ``values`` Lambda_r (r,), ``diagonal`` D (d_k,) and ``core`` (r, r), the
    lower Cholesky factor of I + U^T D^-1 U, float64.
    """

    name = "low_rank"
    file = "low_rank.safetensors"
    measured = ("rank", "energy")

    @property
    def source(self) -> Source:
        """The keys, if they are stored and too few for a covariance of full rank. It is then never formed."""
        return "keys" if self._columns < self.width and self.keep_keys else "covariance"

    @property
    def parameters(self) -> Mapping[str, Any]:
        settings = self.settings.low_rank
        parameters: dict[str, Any] = {
            "preservation": "low_rank",
            "prior_fraction": self._prior_fraction,
            "floor": settings.floor,
        }
        if not settings.centred:
            parameters["centred"] = False
        if self._prior_fraction:
            parameters["prior_rank"] = self._prior_rank
        if settings.rank is not None:
            parameters["rank"] = settings.rank
        else:
            parameters |= {"energy": settings.energy, "energy_of": settings.energy_of}
        if self.source == "keys":
            parameters["n_samples"] = settings.n_samples
        return parameters

    def check(self, tokens: int) -> None:
        most = min(self._columns - self.settings.low_rank.centred, self.width)
        if (self.settings.low_rank.rank or 0) > most:
            raise self._too_small(most)

    def factorise(self, statistics: Statistics, projection: Callable[[], Tensor], layer: int) -> Factor:
        settings, fraction = self.settings.low_rank, self._prior_fraction
        structure = prior(projection(), self._prior_rank) if fraction else None
        rule = RankRule(settings.rank, settings.energy, settings.energy_of)
        try:
            if isinstance(statistics, KeyMoments):
                data = _covariance(statistics, centred=settings.centred)
                model = LowRankModel.of_covariance(fused_covariance(data, structure, fraction), rule, settings.floor)
            else:
                assert statistics is not None
                thin = fused_factor(statistics, structure, fraction, centred=settings.centred)
                model = LowRankModel.of_factor(thin, rule, settings.floor)
        except RankError as error:
            raise self._too_small(error.rank) from None
        return Factor(
            {"basis": model.basis, "values": model.values, "diagonal": model.diagonal, "core": model.core},
            {
                "width": len(model.basis),
                "rank": model.basis.shape[1],
                "energy": model.energy,
                "floored": model.floored,
                "prior_fraction": fraction,
            },
        )

    def _too_small(self, rank: int) -> FactorisationError:
        settings = self.settings.low_rank
        more = ", or raise method.low_rank.n_samples" if rank < self.width else ""
        return FactorisationError(
            f"the covariance of {settings.n_samples:,} keys does not have rank {settings.rank:,}",
            got=f"rank {rank:,}",
            remedy=f"lower method.low_rank.rank to {rank}{more}",
        )

    @property
    def scaling(self) -> Mapping[str, Any]:
        return {"preservation_weight": self.settings.weight}

    def operator(self, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> PreservationOperator:
        model = LowRankModel(**tensors, energy=summary["energy"], floored=summary["floored"])
        return LowRankPreservation(model, self.settings.weight)

    @property
    def cost(self) -> Cost:
        thin = self.source == "keys"
        side = self._columns if thin else self.width
        rank = min(self.settings.low_rank.rank or side, side)
        flop = eigenpairs_flop(side, rank) + 2.0 * self.width * rank**2 + rank**3 / 3
        if thin:
            flop += 2.0 * self.width * side * (side + rank)
        kept = 8 * (self.width * rank + rank**2 + self.width + rank)
        memory = 8 * (3 * side**2 + 3 * side * rank + (2 * self.width * side if thin else 0)) + kept
        return Cost(flop, kept, memory, 4.0 * self.width * rank + 2 * rank**2)

    @property
    def _prior_fraction(self) -> float:
        """``prior_fraction``, or its default: the paper's with few samples, 0 with many."""
        settings = self.settings.low_rank
        if settings.prior_fraction is not None:
            return settings.prior_fraction
        return _FRACTION_OF_FEW if settings.n_samples < _FEW * self.width else 0.0

    @property
    def _prior_rank(self) -> int:
        settings = self.settings.low_rank
        return settings.prior_rank or settings.rank or max(1, self.width // 4)

    @property
    def _columns(self) -> int:
        """Columns of a factor of the fused covariance: the samples, and the rank of the projection's part."""
        return self.settings.low_rank.n_samples + (self._prior_rank if self._prior_fraction else 0)


def _covariance(moments: KeyMoments, *, centred: bool) -> Tensor:
    """C0, or the sample covariance 1 / (n - 1) of the keys."""
    if not centred:
        return moments.covariance
    if moments.mean is None:
        raise FactorisationError(
            "the mean of its keys is not known, so their covariance cannot be centred",
            remedy="set method.low_rank.centred=false",
        )
    count = moments.count
    return (moments.covariance - moments.mean[:, None] * moments.mean) * (count / (count - 1))


def kind(settings: PreservationSettings, *, width: int, keep_keys: bool) -> PreservationKind:
    """The kind that these settings choose."""
    return LowRank(settings, width=width, keep_keys=keep_keys)
