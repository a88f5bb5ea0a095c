"""No statistics at all: A = lambda I, the ridge that the other kinds are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from factsmith.tasks.preservation.kind import Cost, Factor, PreservationKind, Source, Statistics
from factsmith.tasks.preservation.settings import PreservationSettings

__all__ = ["IdentityPreservation", "kind"]


@dataclass(frozen=True)
class IdentityPreservation:
    """A^-1 = I / lambda.

    Attributes:
        weight: lambda.
    """

    weight: float

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B), float64."""
        return keys.double() / self.weight


class _Identity(PreservationKind):
    """``method.preservation=identity``. The tensor is ``weight``, lambda, a float64."""

    name = "identity"
    file = "identity.safetensors"

    @property
    def source(self) -> Source:
        return "nothing"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"preservation": self.name, "preservation_weight": self.settings.weight}

    def factorise(self, statistics: Statistics, projection: Callable[[], Tensor], layer: int) -> Factor:
        weight = self.settings.weight
        return Factor({"weight": torch.tensor(weight, dtype=torch.float64)}, {"weight": weight})

    def operator(self, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> IdentityPreservation:
        return IdentityPreservation(float(tensors["weight"]))

    @property
    def cost(self) -> Cost:
        return Cost(0.0, 8, 0, self.width)


def kind(settings: PreservationSettings, *, width: int, keep_keys: bool) -> PreservationKind:
    """The kind that these settings choose."""
    return _Identity(settings, width=width, keep_keys=keep_keys)
