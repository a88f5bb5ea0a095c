"""Null-space preservation, as in AlphaEdit and AlphaEdit-F: edits avoid the directions that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factsmith.tasks.covariance.eigenpairs import eigenpairs, eigenpairs_flop
from factsmith.tasks.preservation.kind import Cost, Factor, FactorisationError, KeyMoments, PreservationKind, Statistics
from factsmith.tasks.preservation.low_rank import LowRank
from factsmith.tasks.preservation.settings import PreservationSettings

__all__ = ["NullSpace", "NullSpacePreservation", "kind"]


@dataclass(frozen=True)
class NullSpace:
    """The directions that may be written.

    Attributes:
        basis: (d_in, r) float64, orthonormal. It spans either these directions or those that must stay, whichever are
            fewer.
        complement: whether ``basis`` spans the directions that must stay.
    """

    basis: Tensor
    complement: bool

    @classmethod
    def of_covariance(cls, covariance: Tensor, threshold: float) -> NullSpace:
        """The directions in which C0 is small.

        Args:
            covariance: C0, (d_in, d_in) float64.
            threshold: eigenvalues below it count as zero, in the units of C0.
        """
        width = len(covariance)

        def choose(values: Tensor) -> range:
            stay = int((values >= threshold).sum())
            return range(stay) if 2 * stay <= width else range(stay, width)

        side = eigenpairs(covariance, choose)
        return cls(side.vectors.contiguous(), complement=side.first == 0)

    @property
    def dimensions(self) -> int:
        """The number of directions that may be written."""
        width, rank = self.basis.shape
        return width - rank if self.complement else rank

    def project(self, keys: Tensor) -> Tensor:
        """The part of ``keys`` (d_in, B) that lies in these directions, float64."""
        keys = keys.to(self.basis)
        inside = self.basis @ (self.basis.T @ keys)
        return keys - inside if self.complement else inside


@dataclass(frozen=True)
class NullSpacePreservation:
    """A^-1 = P / L2 for the orthogonal projector P onto the directions that may be written.

    With slack 1 this is AlphaEdit in its symmetric form, Delta^T = Q (Q^T K K^T Q + L2 I)^-1 Q^T K R^T for P = Q Q^T
    [Fang et al. 2025]; with P = I - P_r P_r^T it is AlphaEdit-F [FastEdit, eq. 17].

    Attributes:
        space: what P projects onto.
        l2: L2, the weight of the change's size in these directions.
    """

    space: NullSpace
    l2: float

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B), float64."""
        return self.space.project(keys) / self.l2


class _OfCovariance(PreservationKind):
    """AlphaEdit's: eigenvectors of C0 whose eigenvalue is below ``threshold``.

    The tensor is ``basis`` (d_k, r), float64, orthonormal, as in ``NullSpace``.
    """

    name = "null_space"
    file = "null_space.safetensors"
    measured = ("rank", "energy")

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"preservation": self.name, "threshold": self.settings.null_space.threshold}

    def factorise(self, statistics: Statistics, projection: Callable[[], Tensor], layer: int) -> Factor:
        assert isinstance(statistics, KeyMoments)
        covariance = statistics.covariance
        space = NullSpace.of_covariance(covariance, self.settings.null_space.threshold)
        _check_not_empty(space, "a higher method.null_space.threshold")
        if space.dimensions == len(covariance):
            largest = eigenpairs(covariance, 1).values[0]
            raise FactorisationError(
                "every direction may be written, so nothing would be preserved",
                got=f"method.null_space.threshold={self.settings.null_space.threshold:g}",
                expected=f"at most the largest eigenvalue of C0, {float(largest):.3g}",
                remedy="lower method.null_space.threshold",
            )
        held = float((space.basis * (covariance @ space.basis)).sum() / covariance.trace())
        return Factor(
            {"basis": space.basis},
            {
                "width": len(covariance),
                "rank": len(covariance) - space.dimensions,
                "energy": held if space.complement else 1 - held,
                "complement": space.complement,
            },
        )

    @property
    def scaling(self) -> Mapping[str, Any]:
        return {"l2": self.settings.null_space.l2}

    def operator(self, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> NullSpacePreservation:
        return NullSpacePreservation(NullSpace(tensors["basis"], summary["complement"]), self.settings.null_space.l2)

    @property
    def cost(self) -> Cost:
        square = self.width**2
        return Cost(eigenpairs_flop(self.width, self.width // 2), 4 * square, 5 * 8 * square, 2.0 * square)


class _OfLowRank(LowRank):
    """AlphaEdit-F's: everything orthogonal to U. The factor is that of ``method.preservation=low_rank``."""

    @property
    def scaling(self) -> Mapping[str, Any]:
        return {"l2": self.settings.null_space.l2}

    def operator(self, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> NullSpacePreservation:
        space = NullSpace(tensors["basis"], complement=True)
        _check_not_empty(space, "a lower method.low_rank.energy or rank")
        return NullSpacePreservation(space, self.settings.null_space.l2)


def _check_not_empty(space: NullSpace, remedy: str) -> None:
    if not space.dimensions:
        raise FactorisationError(
            "no direction may be written", expected="a null space of one dimension or more", remedy=f"set {remedy}"
        )


def kind(settings: PreservationSettings, *, width: int, keep_keys: bool) -> PreservationKind:
    """The kind that these settings choose."""
    chosen = _OfLowRank if settings.null_space.complement_of == "low_rank" else _OfCovariance
    return chosen(settings, width=width, keep_keys=keep_keys)
