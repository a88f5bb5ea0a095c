"""Random matrices of known condition."""

from __future__ import annotations

import torch
from torch import Tensor

D_IN, D_OUT, BATCH = 48, 20, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(condition: float = 1e4, seed: int = 1) -> Tensor:
    """A covariance of known condition number."""
    basis, _ = torch.linalg.qr(draw(D_IN, D_IN, seed=seed))
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)), D_IN, dtype=torch.float64)
    return basis * values @ basis.T
