"""First and second moments of keys, added up in float64."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
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
        self._device = torch.device(device)
        self._sum = torch.zeros(width, dtype=torch.float64, device=self._device)
        self._outer = torch.zeros(width, width, dtype=torch.float64, device=self._device)

    def update(self, keys: Tensor) -> None:
        """Add ``keys`` (n, d_k), of any dtype."""
        if self._device.type == "cpu":
            # A symmetric product is half the work of a general one, and torch has no name for it. To BLAS, which
            # counts columns first, the transposes are matrices that lie ready. NumPy does the rest too: the threads
            # of two libraries in turn would keep waiting for each other.
            rows = keys.float().numpy().astype(np.float64)
            self._sum.numpy()[...] += rows.sum(0)
            dsyrk(1.0, rows.T, beta=1.0, c=self._outer.numpy().T, overwrite_c=True, lower=True)
        else:
            keys = keys.to(self._sum)
            self._sum += keys.sum(0)
            self._outer.addmm_(keys.T, keys)
        self.count += len(keys)

    @property
    def covariance(self) -> Tensor:
        """C0: the uncentred mean of k k^T, (d_k, d_k) float64 on the CPU."""
        upper = np.triu(self._outer.cpu().numpy())  # of a symmetric product BLAS fills one half
        return torch.from_numpy((upper + np.triu(upper, 1).T) / self.count)

    @property
    def mean(self) -> Tensor:
        """Mean key, (d_k,) float64 on the CPU."""
        return torch.from_numpy(self._sum.cpu().numpy() / self.count)
