"""Full-rank preservation: A = lambda C0 + ridge I, as in MEMIT, ROME and EMMET."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky, solve_factored
from factsmith.tasks.covariance.spectrum import rank_of_energy

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

    def leading_directions(self, energy: float) -> tuple[Tensor, float]:
        """The eigenvectors of A that matter most: as few as hold ``energy`` of the sum of its eigenvalues.

        A ridge, which raises all eigenvalues alike, does not turn them.

        Returns:
            (d_in, r) float64, orthonormal, the leading one first; and the share that they hold.
        """
        values, vectors = torch.linalg.eigh(self.factor @ self.factor.T)
        values = values.flip(0).clamp(min=0)
        rank = rank_of_energy(values, energy)
        return vectors.flip(1)[:, :rank].contiguous(), float(values[:rank].sum() / values.sum())

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B)."""
        return solve_factored(self.factor, keys.to(self.factor))
