"""First and second moments of keys, added up in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    """Running moments of keys of width ``d``.

    The uncentred second moment C0 = mean of k k^T is what the locate-then-edit methods preserve
    (Meng et al. 2022b, section 4.2.1). Products and sums are float64: the product of two float32 keys is exact.

    Args:
        width: d_k.
        device: where to add up.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._outer = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, keys: Tensor) -> None:
        """Add ``keys`` (n, d_k), of any dtype."""
        keys = keys.to(self._sum)
        self._sum += keys.sum(0)
        self._outer.addmm_(keys.T, keys)
        self.count += len(keys)

    @property
    def covariance(self) -> Tensor:
        """C0: the uncentred mean of k k^T, (d_k, d_k) float64."""
        return self._outer / self.count

    @property
    def mean(self) -> Tensor:
        """Mean key, (d_k,) float64."""
        return self._sum / self.count
