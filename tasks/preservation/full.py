"""Full-rank preservation: A = lambda C0 + ridge I, as in MEMIT, ROME and EMMET."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from factsmith.tasks.numerics.cholesky import cholesky, solve_factored

__all__ = ["FullPreservation"]


@dataclass(frozen=True)
class FullPreservation:
    """A^-1 through the lower Cholesky factor of A = lambda C0 + ridge I.

    Attributes:
        factor: (d_in, d_in) float64, lower triangular.
    """

    factor: Tensor

    @classmethod
    def from_covariance(cls, covariance: Tensor, *, weight: float, ridge: float = 0.0) -> FullPreservation:
        """Factorise once.

        Args:
            covariance: C0, (d_in, d_in) float64.
            weight: lambda, how much what C0 describes is worth against the new facts (``mom2_update_weight`` in
                Meng et al. 2022b).
            ridge: added to the diagonal of lambda C0.

        Raises:
            SingularMatrixError: A is not positive definite.
        """
        matrix = covariance.double() * weight
        matrix.diagonal().add_(ridge)
        return cls(cholesky(matrix))

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B)."""
        return solve_factored(self.factor, keys.to(self.factor))
