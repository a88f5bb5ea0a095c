"""Settings of what an edit must preserve."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.budget import Reads
from factsmith.tasks.pipeline.settings import ReadIf, Section

__all__ = ["SOLVES", "EnergyOf", "LowRankSettings", "NullSpaceSettings", "PreservationSettings"]

SOLVES = ReadIf("method.editor", (None,), needs="a method that solves the equation")
"""Settings of the equation. Methods with an editor do not read them."""


EnergyOf = Literal["eigenvalues", "squared_eigenvalues"]
"""Whether the energy of a rank is its share of the fused covariance's eigenvalues, or of their squares."""


_SAMPLES = ReadIf("method.reads", ("samples",), needs="a method that uses a low-rank model of the keys")
_NO_RANK = ReadIf("method.low_rank.rank", (None,))
_SMOOTHED = ReadIf("method.low_rank.prior_fraction", but=(0,))


class LowRankSettings(Section):
    """The low-rank model of the keys, U U^T + D."""

    n_samples: Annotated[
        int, _SAMPLES | ReadIf("method.in_sequence", (True,)), ReadIf("corpus.statistics", (None,))
    ] = Field(40_000, ge=2, description="tokens whose keys are modelled, instead of corpus.tokens")
    centred: Annotated[bool, _SAMPLES] = Field(
        True,
        description="whether the keys' mean is subtracted, as in the paper; only D then preserves the mean direction",
    )
    rank: Annotated[int | None, _SAMPLES] = Field(
        None, ge=1, description="r0, columns of U; null for as few as hold low_rank.energy"
    )
    energy: Annotated[float, _SAMPLES, _NO_RANK] = Field(
        0.8, gt=0, le=1, description="share of the fused covariance that U holds"
    )
    energy_of: Annotated[EnergyOf, _SAMPLES, _NO_RANK] = Field(
        "eigenvalues", description="whether energy is a share of the sum of the eigenvalues or of their squares"
    )
    prior_fraction: Annotated[float | None, _SAMPLES] = Field(
        None,
        ge=0,
        le=1,
        description="weight of the layer's own projection in the fused covariance; null for 0.05 with fewer than "
        "10 d_k samples, else 0",
    )
    prior_rank: Annotated[int | None, _SAMPLES, _SMOOTHED] = Field(
        None, ge=1, description="rank of the projection's part; null for low_rank.rank, or a quarter of d_k"
    )
    floor: Annotated[float, _SAMPLES] = Field(
        1e-6, gt=0, description="smallest entry of D, in multiples of the fused covariance's mean variance"
    )


class NullSpaceSettings(Section):
    """The directions that may be written, as in AlphaEdit."""

    complement_of: Literal["covariance", "low_rank"] = Field(
        "covariance", description="what changes must avoid: leading eigenvectors of C0, or the columns of low_rank's U"
    )
    threshold: Annotated[float, ReadIf("method.null_space.complement_of", ("covariance",))] = Field(
        0.02, gt=0, description="eigenvalue of C0 below which a direction may be written"
    )
    l2: float = Field(10, gt=0, description="weight of the change's size, in place of lambda")


class PreservationSettings(Section):
    """What an edit must preserve. These settings are part of ``method``."""

    preservation: Annotated[Literal["full", "low_rank", "null_space", "identity"], SOLVES] = Field(
        "full", description="what A is made from: C0, its low-rank model, its null space, or the identity"
    )
    preservation_weight: Annotated[
        Annotated[float, Field(gt=0)] | None, SOLVES, ReadIf("method.preservation", but=("null_space",))
    ] = Field(None, description="lambda, the weight of C0 or of what replaces it; null_space has l2 instead")
    low_rank: LowRankSettings = Field(default_factory=LowRankSettings)
    null_space: Annotated[NullSpaceSettings, SOLVES, ReadIf("method.preservation", ("null_space",))] = Field(
        default_factory=NullSpaceSettings
    )
    ridge: Annotated[
        Annotated[float, Field(ge=0, le=1e30)] | Literal["auto"], SOLVES, ReadIf("method.preservation", ("full",))
    ] = Field(
        0.0, description="added to the diagonal of lambda C0; 'auto' for the smallest that allows a factorisation"
    )

    @property
    def weight(self) -> float:
        """lambda, or the null space's l2, which takes its place.

        Raises:
            InputError: lambda is not given.
        """
        if self.preservation == "null_space":
            return self.null_space.l2
        if self.preservation_weight is None:
            raise InputError("method.preservation_weight must be given.", remedy="add method.preservation_weight=...")
        return self.preservation_weight

    def with_weight(self, weight: float) -> Self:
        """These settings with another ``weight``."""
        if self.preservation == "null_space":
            return self.model_copy(update={"null_space": self.null_space.model_copy(update={"l2": weight})})
        return self.model_copy(update={"preservation_weight": weight})

    def with_samples(self, count: int) -> Self:
        """These settings with another ``low_rank.n_samples``."""
        return self.model_copy(update={"low_rank": self.low_rank.model_copy(update={"n_samples": count})})

    @property
    def solves(self) -> bool:
        """Whether the method solves the equation, which these settings are for."""
        return True

    @model_validator(mode="after")
    def _weight_is_given(self) -> Self:
        if self.solves:
            _ = self.weight
        return self

    @property
    def reads(self) -> Reads:
        """The keys that the operator is made from."""
        if self.preservation == "identity":
            return "nothing"
        modelled = self.preservation == "null_space" and self.null_space.complement_of == "low_rank"
        return "samples" if modelled or self.preservation == "low_rank" else "corpus"
