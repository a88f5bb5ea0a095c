"""The fused covariance of keys, modelled as a low-rank matrix plus a diagonal matrix, U U^T + D.

Equations are those of "FastEdit: Low-Rank Structured Regularization for Efficient Model Editing".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.tasks.covariance.cholesky import cholesky
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

    def choose(self, values: Tensor, width: int) -> int:
        """The rank of U.

        Args:
            values: the matrix's eigenvalues, descending; some that are 0 may be left out.
            width: number of rows of the matrix.

        Raises:
            RankError: the matrix has a lower rank than ``rank``.
        """
        most = int((values > width * torch.finfo(values.dtype).eps * values[0]).sum())
        if self.rank is not None:
            if self.rank > most:
                raise RankError(most)
            return self.rank
        shares = values[:most]
        return rank_of_energy(shares.square() if self.energy_of == "squared_eigenvalues" else shares, self.energy)


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
        values, vectors = torch.linalg.eigh(covariance)
        values = values.flip(0)
        rank = rule.choose(values, len(covariance))
        return cls._of_eigenvectors(vectors.flip(1)[:, :rank], values[:rank], covariance.diagonal(), floor)

    @classmethod
    def of_factor(cls, factor: Tensor, rule: RankRule, floor: float) -> LowRankModel:
        """The model of C_fused = F F^T from a thin factor F, (d_in, n) float64. C_fused is never formed.

        The other arguments and the errors are those of ``of_covariance``.
        """
        values, vectors = torch.linalg.eigh(factor.T @ factor)
        values = values.flip(0)
        rank = rule.choose(values, len(factor))
        # QR gives an orthonormal basis up to rounding, even if an eigenvalue is far below the largest.
        # F V Lambda^(-1/2) would not.
        basis, _ = torch.linalg.qr(factor @ vectors.flip(1)[:, :rank])
        return cls._of_eigenvectors(basis, values[:rank], factor.square().sum(1), floor)

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
        V_r S_r, (d_in, r) float64. Lambda_v holds the squared singular values. ``fused_covariance`` and
        ``fused_factor`` scale them.
    """
    weight = weight.double()
    if weight.shape[0] <= weight.shape[1]:
        values, vectors = torch.linalg.eigh(weight @ weight.T)
        factor = weight.T @ vectors
    else:
        values, vectors = torch.linalg.eigh(weight.T @ weight)
        factor = vectors * values.clamp(min=0).sqrt()
    leading: Tensor = factor.flip(1)[:, :rank]
    return leading


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
