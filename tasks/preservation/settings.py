"""Settings of what an edit must preserve."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from factsmith.tasks.corpus.budget import Reads
from factsmith.tasks.pipeline.settings import Section

__all__ = ["EnergyOf", "LowRankSettings", "NullSpaceSettings", "PreservationSettings"]

EnergyOf = Literal["eigenvalues", "squared_eigenvalues"]
"""Whether the energy of a rank is its share of the fused covariance's eigenvalues, or of their squares."""


class LowRankSettings(Section):
    """The low-rank model of the keys, U U^T + D."""

    n_samples: int = Field(40_000, ge=2, description="tokens whose keys are modelled, instead of corpus.tokens")
    centred: bool = Field(
        True,
        description="whether the keys' mean is subtracted, as in the paper; only D then preserves the mean direction",
    )
    rank: int | None = Field(None, ge=1, description="r0, columns of U; null for as few as hold low_rank.energy")
    energy: float = Field(0.8, gt=0, le=1, description="share of the fused covariance that U holds")
    energy_of: EnergyOf = Field(
        "eigenvalues", description="whether energy is a share of the sum of the eigenvalues or of their squares"
    )
    prior_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the layer's own projection in the fused covariance; null for 0.05 with fewer than "
        "10 d_k samples, else 0",
    )
    prior_rank: int | None = Field(
        None, ge=1, description="rank of the projection's part; null for low_rank.rank, or a quarter of d_k"
    )
    floor: float = Field(
        1e-6, gt=0, description="smallest entry of D, in multiples of the fused covariance's mean variance"
    )


class NullSpaceSettings(Section):
    """The directions that may be written, as in AlphaEdit."""

    complement_of: Literal["covariance", "low_rank"] = Field(
        "covariance", description="what changes must avoid: leading eigenvectors of C0, or the columns of low_rank's U"
    )
    threshold: float = Field(0.02, gt=0, description="eigenvalue of C0 below which a direction may be written")
    l2: float = Field(10, gt=0, description="weight of the change's size, in place of lambda")


class PreservationSettings(Section):
    """What an edit must preserve. These settings are part of ``method``."""

    preservation: Literal["full", "low_rank", "null_space", "identity"] = Field(
        "full", description="what A is made from: C0, its low-rank model, its null space, or the identity"
    )
    preservation_weight: float = Field(gt=0, description="lambda, the weight of C0 or of what replaces it")
    low_rank: LowRankSettings = Field(default_factory=LowRankSettings)
    null_space: NullSpaceSettings = Field(default_factory=NullSpaceSettings)
    ridge: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.0, description="added to the diagonal of lambda C0; 'auto' for the smallest that allows a factorisation"
    )

    @property
    def reads(self) -> Reads:
        """The keys that the operator is made from."""
        if self.preservation == "identity":
            return "nothing"
        modelled = self.preservation == "null_space" and self.null_space.complement_of == "low_rank"
        return "samples" if modelled or self.preservation == "low_rank" else "corpus"
