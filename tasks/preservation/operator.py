"""What an edit must leave alone, as an operator that applies A^-1."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["PreservationOperator"]


class PreservationOperator(Protocol):
    """Applies the inverse of the preservation matrix A of one layer, from a factor that is computed once."""

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 K for keys K of shape (d_in, B), float64."""
        ...
