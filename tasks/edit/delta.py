"""A low-rank weight change, stored as two thin factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LowRankDelta"]


@dataclass(frozen=True)
class LowRankDelta:
    """Delta = left @ right.T.

    Attributes:
        left: (d_out, rank) factor.
        right: (d_in, rank) factor.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of the factors, which is an upper bound of Delta's rank."""
        return self.left.shape[1]

    def contiguous(self) -> LowRankDelta:
        """The same change with row-major factors, as they are read from a file."""
        return LowRankDelta(self.left.contiguous(), self.right.contiguous())

    def dense(self) -> Tensor:
        """Delta itself, (d_out, d_in), in the factors' dtype."""
        return self.left @ self.right.T

    def norm(self) -> float:
        """Frobenius norm of Delta, computed from the factors' Gram matrices."""
        gram = (self.left.T @ self.left) * (self.right.T @ self.right)
        return float(gram.sum().clamp(min=0).sqrt())

    def added_to(self, weight: Tensor) -> Tensor:
        """``weight`` (d_out, d_in) plus Delta, summed in float32 and rounded once to the weight's dtype."""
        total = self.dense().to(device=weight.device, dtype=torch.float32)
        return (weight.to(torch.float32) + total).to(weight.dtype)
