"""The fused covariance of keys, modelled as a low-rank matrix plus a diagonal matrix, U U^T + D.

Equations are those of "FastEdit: Low-Rank Structured Regularization for Efficient Model Editing".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky
from factsmith.tasks.covariance.eigenpairs import Eigenpairs, eigenpairs
from factsmith.tasks.covariance.spectrum import rank_of_energy
from factsmith.tasks.preservation.settings import EnergyOf

__all__ = ["LowRankModel", "RankError", "RankRule", "fused_covariance", "fused_factor", "prior"]


class RankError(Exception):
    """The fused covariance has a lower rank than the settings require.

    Attributes:
        rank: rank of the fused covariance.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(f"the fused covariance has rank {rank}")
        self.rank = rank


@dataclass(frozen=True)
class RankRule:
    """How the rank of U is chosen.

    Attributes:
        rank: r0; ``None`` for the smallest rank that holds ``energy``.
        energy: share that the principal directions must hold, in (0, 1].
        energy_of: whether ``energy`` is a share of the sum of the eigenvalues or of their squares.
    """

    rank: int | None
    energy: float
    energy_of: EnergyOf

    def eigenpairs(self, matrix: Tensor, width: int) -> Eigenpairs:
        """The leading eigenpairs of ``matrix``, as many as U has columns.

        Args:
            matrix: (n, n) float64, symmetric positive semidefinite.
            width: number of rows of U.

        Raises:
            RankError: the matrix has a lower rank than ``rank``.
        """
        # Both sums are known without eigenvalues.
        total = float(matrix.norm().square() if self.energy_of == "squared_eigenvalues" else matrix.trace())

        def choose(values: Tensor) -> range:
            most = _numerical_rank(values, width)
            shares = values[:most].square() if self.energy_of == "squared_eigenvalues" else values[:most]
            rank = rank_of_energy(shares, self.energy, total)
            return range(min(rank, most) if most < len(values) else rank)

        found = eigenpairs(matrix, self.rank or choose)
        if self.rank is not None and self.rank > (most := _numerical_rank(found.values, width)):
            raise RankError(most)
        return found


def _numerical_rank(values: Tensor, width: int) -> int:
    """The number of eigenvalues (r,), descending, that are not rounding errors of a factor with ``width`` rows."""
    return int((values > width * torch.finfo(values.dtype).eps * values[0]).sum())


@dataclass(frozen=True)
class LowRankModel:
    """The fused covariance of keys as U U^T + D, U = P_r Lambda_r^(1/2) [FastEdit, eqs. 9, 12 and 13].

    Attributes:
        basis: P_r, (d_in, r) float64, orthonormal: the leading eigenvectors.
        values: Lambda_r, (r,) float64, descending.
        diagonal: D, (d_in,) float64.
        core: (r, r) float64, lower Cholesky factor of I + U^T D^-1 U.
        energy: share of the sum of the eigenvalues that the r principal directions hold.
        floored: number of entries of D that were raised to the floor.
    """

    basis: Tensor
    values: Tensor
    diagonal: Tensor
    core: Tensor
    energy: float
    floored: int

    @classmethod
    def of_covariance(cls, covariance: Tensor, rule: RankRule, floor: float) -> LowRankModel:
        """The model of a fused covariance.

        Args:
            covariance: C_fused, (d_in, d_in) float64.
            rule: rule that chooses the rank of U.
            floor: smallest entry of D, in multiples of C_fused's mean diagonal entry.

        Raises:
            RankError: C_fused has a lower rank than ``rule`` requires.
        """
        leading = rule.eigenpairs(covariance, len(covariance))
        return cls._of_eigenvectors(leading.vectors, leading.values, covariance.diagonal(), floor)

    @classmethod
    def of_factor(cls, factor: Tensor, rule: RankRule, floor: float) -> LowRankModel:
        """The model of C_fused = F F^T from a thin factor F, (d_in, n) float64. C_fused is never formed.

        The other arguments and the errors are those of ``of_covariance``.
        """
        leading = rule.eigenpairs(factor.T @ factor, len(factor))
        # QR gives an orthonormal basis up to rounding, even if an eigenvalue is far below the largest.
        # F V Lambda^(-1/2) would not.
        basis, _ = torch.linalg.qr(factor @ leading.vectors)
        return cls._of_eigenvectors(basis, leading.values, factor.square().sum(1), floor)

    @classmethod
    def _of_eigenvectors(cls, basis: Tensor, values: Tensor, total: Tensor, floor: float) -> LowRankModel:
        least = floor * float(total.mean())
        residual = total - basis.square() @ values
        diagonal = residual.clamp(min=least)
        scaled = basis * values.sqrt()
        core = scaled.T @ (scaled / diagonal[:, None])
        core.diagonal().add_(1)
        energy = float(values.sum() / total.sum())
        basis, floored = basis.contiguous(), int((residual < least).sum())
        return cls(basis, values.contiguous(), diagonal, cholesky(core), energy, floored)


def prior(weight: Tensor, rank: int) -> Tensor:
    """A factor of C_prior = V_r Lambda_v V_r^T, from the layer's own projection [FastEdit, eq. 10].

    Args:
        weight: weight of the projection, (d_out, d_in). V_r holds its leading right singular vectors.
        rank: r, limited to ``min(d_out, d_in)``.

    Returns:
        P with P P^T = C_prior, (d_in, r) float64. Lambda_v holds the squared singular values. ``fused_covariance`` and
        ``fused_factor`` scale them.
    """
    weight = weight.double()
    rows, columns = weight.shape
    if rows <= min(rank, columns):
        return weight.T  # All singular vectors make W^T W itself.
    if rows <= columns:
        return weight.T @ eigenpairs(weight @ weight.T, rank).vectors
    leading = eigenpairs(weight.T @ weight, rank)
    return leading.vectors * leading.values.clamp(min=0).sqrt()


def fused_covariance(covariance: Tensor, prior: Tensor | None, fraction: float) -> Tensor:
    """C_fused = (1 - a) C_data + a C_prior, with C_prior scaled to C_data's Frobenius norm [FastEdit, eq. 11].

    Args:
        covariance: C_data, (d_in, d_in) float64.
        prior: a factor of C_prior, (d_in, r) float64; ``None`` if ``fraction`` is 0.
        fraction: a, the weight of C_prior.
    """
    if prior is None or fraction == 0:
        return covariance
    scale = float(covariance.norm() / (prior.T @ prior).norm())
    # One product with C_prior's factor costs less than those with every vector of a Krylov space would.
    fused: Tensor = (1 - fraction) * covariance + fraction * scale * (prior @ prior.T)
    return fused


def fused_factor(keys: Tensor, prior: Tensor | None, fraction: float, *, centred: bool = True) -> Tensor:
    """A thin factor F of C_fused = F F^T, for too few keys to give C_data full rank.

    Args:
        keys: (n, d_in).
        prior: a factor of C_prior, (d_in, r) float64; ``None`` if ``fraction`` is 0.
        fraction: a, the weight of C_prior.
        centred: whether C_data is the keys' sample covariance (centred, with 1 / (n - 1)) or their mean of k k^T.

    Returns:
        (d_in, n + r) float64.
    """
    keys = keys.double()
    data: Tensor = (keys - keys.mean(0)).T / (len(keys) - 1) ** 0.5 if centred else keys.T / len(keys) ** 0.5
    if prior is None or fraction == 0:
        return data
    scale = float((data.T @ data).norm() / (prior.T @ prior).norm())
    fused: Tensor = torch.cat([(1 - fraction) ** 0.5 * data, (fraction * scale) ** 0.5 * prior], 1)
    return fused
