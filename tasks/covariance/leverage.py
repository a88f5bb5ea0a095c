"""Held-out leverage: how well C0, a mean over some keys, represents keys that it was not computed from.

A direction that the keys in C0 happen to miss looks free to be written, although other keys need it. Held-out keys in
such a direction have a large leverage. For Gaussian keys and C0 from n of them, the mean held-out leverage is
n / (n - d_k - 1), because the inverse of a Wishart matrix has that expectation (Muirhead 1982, *Aspects of Multivariate
Statistical Theory*, section 3.2). It is 1 if C0 is exact.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["held_out_leverages"]


def held_out_leverages(factor: Tensor, keys: Iterable[Tensor]) -> Tensor:
    """k^T C0^-1 k / d_k of each key. Their mean is the held-out leverage.

    Args:
        factor: (d_k, d_k) float64, the lower Cholesky factor of C0.
        keys: keys that are not part of C0, in blocks (n, d_k) of any dtype.

    Returns:
        (keys,) float64, on the factor's device.
    """
    found = [
        torch.linalg.solve_triangular(factor, block.to(factor).mT, upper=False).square().sum(0) / len(factor)
        for block in keys
    ]
    return torch.cat(found) if found else factor.new_zeros(0)
