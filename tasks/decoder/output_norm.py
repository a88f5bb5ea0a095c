"""Blocks that normalise what their MLP adds: which outputs such a block can have, and how its MLP reaches them.

In most families a block's output is h + m, where m is the output of its MLP, so that a change of m changes the block's
output by as much. In Gemma 2 and 3 it is h + N(m), where N(m) = w m / sqrt(mean(m^2) + eps) is an RMS norm  [Zhang &
Sennrich 2019, eq. 4]. As eps is small beside mean(m^2), N(m) lies on an ellipsoid with semi-axes in proportion to w,
whatever m is. Most vectors are therefore no output that the block can have, and a change of m has an effect of another
size and direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["OutputNorm"]

_HALVINGS = 120
"""Halvings of the interval of the multiplier, which may be much smaller than its bounds."""


class OutputNorm:
    """The norm N between a block's MLP and the residual stream.

    Args:
        norm: the RMS norm, with a weight for each entry and an ``eps``.
    """

    def __init__(self, norm: nn.Module) -> None:
        self._norm = norm
        self._eps: float = float(vars(norm)["eps"])

    def added(self, outputs: Tensor) -> Tensor:
        """N(m), what the block adds to the residual stream for ``outputs`` m (n, d_model), in their data type."""
        found: Tensor = self._norm(outputs.float())
        return found.to(outputs)

    def effect(self, outputs: Tensor, steps: Tensor) -> Tensor:
        """N(m + r s) - N(m), (n, d_model) float32: the change of the block's output for ``steps`` s.

        Gradients flow to the steps. N does not depend on the length of its input, so a step is measured in multiples of
        r, the root mean square of m: a step of the length sqrt(d_model) is as long as m.

        Args:
            outputs: (n, d_model) m.
            steps: (n, d_model) s.
        """
        outputs = outputs.float()
        size = outputs.square().mean(1, keepdim=True).sqrt()
        return self.added(outputs + size * steps) - self.added(outputs)

    @torch.no_grad()
    def needed(self, outputs: Tensor, changes: Tensor) -> Tensor:
        """The changes x of ``outputs`` m after which the block's output has changed by ``changes`` c.

        If no x does this, N(m + x) is the vector that is nearest to N(m) + c among those that the block can add. Of all
        such x, which differ in the length of m + x only, it is the one that keeps the length of m.

        N(m + x) = w q with |q| = |N(m) / w|. The q that minimises |w q - u| for u = N(m) + c is w u / (w^2 + mu), where
        the multiplier mu > -min(w^2) follows from |q|, which falls as mu grows.

        Args:
            outputs: (n, d_model) float64.
            changes: (n, d_model) float64.
        """
        weight = self.added(torch.ones_like(outputs[:1])) * math.sqrt(1 + self._eps)
        size: Tensor = (outputs.square().mean(1, keepdim=True) + self._eps).sqrt()
        wanted = weight * outputs / size + changes
        length: Tensor = outputs.norm(dim=1, keepdim=True) / size
        squares = weight.square()
        least = squares.min()

        def nearest(above: Tensor) -> Tensor:
            """q for the multiplier ``above`` - min(w^2)."""
            return weight * wanted / (squares - least + above)

        low, high = torch.zeros_like(size), least + (weight * wanted).norm(dim=1, keepdim=True) / length
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            longer = nearest(middle).norm(dim=1, keepdim=True) > length
            low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
        found = nearest(high)
        moved: Tensor = size * found * (length / found.norm(dim=1, keepdim=True))
        return moved - outputs
