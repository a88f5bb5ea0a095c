"""Full preservation, as in MEMIT, ROME and EMMET: A = lambda C0 + ridge I, through its Cholesky factor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factsmith.tasks.covariance.cholesky import SingularMatrixError, cholesky, least_ridge, solve_factored
from factsmith.tasks.preservation.kind import Cost, Factor, FactorisationError, KeyMoments, PreservationKind, Statistics
from factsmith.tasks.preservation.settings import PreservationSettings

__all__ = ["FullPreservation", "kind"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FullPreservation:
    """Applies A^-1 through the lower Cholesky factor of A = lambda C0 + ridge I.

    Attributes:
        factor: (d_in, d_in) float64, lower triangular.
    """

    factor: Tensor

    @classmethod
    def from_covariance(cls, covariance: Tensor, *, weight: float, ridge: float = 0.0) -> FullPreservation:
        """Factorise A once.

        Args:
            covariance: C0, (d_in, d_in) float64.
            weight: lambda, the weight of C0 against the new facts (``mom2_update_weight`` in Meng et al. 2022b).
            ridge: added to the diagonal of lambda C0.

        Raises:
            SingularMatrixError: A is not positive definite.
        """
        matrix = covariance.double() * weight
        matrix.diagonal().add_(ridge)
        return cls(cholesky(matrix))

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B), float64."""
        return solve_factored(self.factor, keys.to(self.factor))


_LARGEST = 1e100
"""Beyond this, squares of the entries of lambda C0 come near the largest float64 number."""


class _Full(PreservationKind):
    """``method.preservation=full``. The tensor is ``cholesky`` (d_k, d_k), float64, lower triangular."""

    name = "full"
    version = 2
    file = "factor.safetensors"
    measured = ("ridge",)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {
            "preservation": self.name,
            "preservation_weight": self.settings.weight,
            "ridge": self.settings.ridge,
        }

    def check(self, tokens: int) -> None:
        if not self.settings.ridge and tokens < self.width:
            raise _singular(tokens, tokens, self.width)

    def factorise(self, statistics: Statistics, projection: Callable[[], Tensor], layer: int) -> Factor:
        assert isinstance(statistics, KeyMoments)
        weight, ridge = self.settings.weight, self.settings.ridge
        size = weight * float(statistics.covariance.trace())
        if not 1 / _LARGEST < size < _LARGEST:
            raise FactorisationError(
                f"lambda C0 is too {'large' if size > 1 else 'small'} for float64 arithmetic",
                got=f"method.preservation_weight={weight:g}, trace of C0 {size / weight:.3g}",
                expected=f"a product between {1 / _LARGEST:g} and {_LARGEST:g}",
                remedy=f"{'lower' if size > 1 else 'raise'} method.preservation_weight",
            )
        if ridge == "auto":
            ridge = least_ridge(statistics.covariance) * weight
            logger.info("layer %d: ridge %.3g added to lambda C0 (method.ridge=auto)", layer, ridge)
        try:
            operator = FullPreservation.from_covariance(statistics.covariance, weight=weight, ridge=ridge)
        except SingularMatrixError as error:
            raise _singular(statistics.count, error.rank, error.size) from None
        return Factor({"cholesky": operator.factor}, {"width": len(operator.factor), "ridge": ridge})

    def operator(self, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> FullPreservation:
        return FullPreservation(tensors["cholesky"])

    @property
    def cost(self) -> Cost:
        square = self.width**2
        return Cost(self.width**3 / 3, 8 * square, 3 * 8 * square, 2 * square)


def _singular(tokens: int, rank: int, size: int) -> FactorisationError:
    return FactorisationError(
        f"the covariance over {tokens:,} token{'' if tokens == 1 else 's'} cannot be factorised",
        got=f"rank {rank:,}",
        expected=f"rank {size:,}",
        remedy="set method.ridge=auto",
        tokens_needed=2 * size,
    )


def kind(settings: PreservationSettings, *, width: int, keep_keys: bool) -> PreservationKind:
    """The kind that these settings choose."""
    return _Full(settings, width=width, keep_keys=keep_keys)
