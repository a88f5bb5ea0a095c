"""The sum of many weight changes. The sum itself may have any rank."""

from __future__ import annotations

import torch
from torch import Tensor

from factsmith.tasks.edit.delta import Delta, DenseDelta, LowRankDelta

__all__ = ["DeltaSum"]


class DeltaSum:
    """Delta_1 + ... + Delta_t of one layer, summed in float64 in the order of the calls of ``add``.

    Both the dense sum and the factors of its parts are kept. The factors are dropped once their total rank exceeds
    min(d_out, d_in), because they are then no longer thin, and once a part is dense. The same changes in the same order
    give the same bits.
    """

    def __init__(self) -> None:
        self._total = torch.empty(0, 0, dtype=torch.float64)
        self._factors: list[LowRankDelta] = []
        self._rank = 0
        self._dense = False

    @property
    def total(self) -> Tensor:
        """The dense sum, (d_out, d_in) float64; empty before the first change."""
        return self._total

    def add(self, delta: Delta) -> None:
        """Add ``delta``, whose factors are float64 if it is low-rank."""
        if isinstance(delta, LowRankDelta):
            if not self._rank:
                self._total = torch.zeros(
                    len(delta.left), len(delta.right), dtype=torch.float64, device=delta.left.device
                )
            self._total.addmm_(delta.left, delta.right.T)
        else:
            dense, self._dense = delta.dense(), True
            self._total = self._total.add_(dense) if self._rank else dense.to(torch.float64, copy=True)
        self._rank += delta.rank
        if self._rank <= min(self._total.shape) and not self._dense:
            assert isinstance(delta, LowRankDelta)
            self._factors.append(delta)
        else:
            self._factors = []

    def delta(self) -> Delta:
        """The sum so far. Later calls of ``add`` do not change it.

        If all parts are low-rank, it is two factors of rank at most min(d_out, d_in): those of its parts side by side
        or, once these are dropped, the dense sum and an identity. No decomposition is needed, because a sum of full
        rank has no thinner factors than these. If a part is dense, it is the dense sum, rounded to float32, in which it
        is added to a weight.
        """
        if self._dense:
            return DenseDelta(self._total.float())
        if self._factors:
            left = torch.cat([one.left for one in self._factors], dim=1)
            return LowRankDelta(left, torch.cat([one.right for one in self._factors], dim=1))
        total = self._total.clone()
        rows, columns = total.shape
        identity = torch.eye(min(rows, columns), dtype=torch.float64, device=total.device)
        return LowRankDelta(identity, total.T) if rows <= columns else LowRankDelta(total, identity)
