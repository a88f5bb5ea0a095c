"""Lifelong normalisation: feature vectors in standard deviations from the mean of all that were ever seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SeenFeatures", "read_features", "stored_features"]

_EPSILON = torch.finfo(torch.float32).eps
"""What is added to a standard deviation, as in UltraEdit's code."""


@dataclass(frozen=True)
class SeenFeatures:
    """Mean and spread of all feature vectors so far, float64.

    Attributes:
        count: N, their number.
        mean: (width,) mu.
        squares: (width,) s^2, the sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def none(cls, width: int) -> SeenFeatures:
        """Before the first vector."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    def with_rows(self, rows: Tensor) -> SeenFeatures:
        """These and ``rows`` (n, width). Whatever the batches, the result is that of all vectors at once.

        With delta = mean(rows) - mu: mu + n / (N + n) delta, and s^2 + n Var(rows) + N n / (N + n) delta^2
        [Gu et al. 2025, on lifelong normalisation]. UltraEdit's code takes the sample variance for Var, which is too
        large by n / (n - 1), and has none for a single row. Here Var divides by n, which makes the sum exact.
        """
        rows = rows.double()
        number, total = len(rows), self.count + len(rows)
        delta = rows.mean(0) - self.mean
        squares = rows.var(0, correction=0) * number + delta.square() * (self.count * number / total)
        return SeenFeatures(total, self.mean + delta * (number / total), self.squares + squares)

    def normalised(self, rows: Tensor) -> Tensor:
        """(rows - mu) / (sigma + eps) of ``rows`` (n, width), float64, with sigma^2 = s^2 / (N - 1).

        A single vector is its own mean, so that nothing is left of it.
        """
        spread = (self.squares / max(self.count - 1, 1)).sqrt()
        return (rows.double() - self.mean) / (spread + _EPSILON)


def stored_features(features: Mapping[str, SeenFeatures]) -> dict[str, Tensor]:
    """The tensors of features: ``NAME.count`` (1,) int64, ``NAME.mean`` and ``NAME.squares`` (width,) float64."""
    found: dict[str, Tensor] = {}
    for name, seen in features.items():
        count = torch.tensor([seen.count])
        found |= {f"{name}.count": count, f"{name}.mean": seen.mean, f"{name}.squares": seen.squares}
    return found


def read_features(tensors: Mapping[str, Tensor]) -> dict[str, SeenFeatures]:
    """The features that were stored as ``tensors``, which may hold other tensors too."""
    names = [key.removesuffix(".count") for key in tensors if key.endswith(".count")]
    return {
        name: SeenFeatures(int(tensors[f"{name}.count"]), tensors[f"{name}.mean"], tensors[f"{name}.squares"])
        for name in names
    }
