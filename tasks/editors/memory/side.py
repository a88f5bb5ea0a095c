"""The side memory of WISE: changed copies of one weight, and the router that sends prompts to them  [Wang et al. 2024].

A copy is kept as its change of the weight, which gives small distances without rounding. The activation distance of a
key k is ||change k||, the distance between what the copy and the weight make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from factsmith.tasks.editors.training import numbered_generator

__all__ = ["Side", "activation_distances", "margin_losses", "merged_changes", "random_mask"]


@dataclass(frozen=True)
class Side:
    """A copy of the weight with some facts: a shard, or several shards that have been merged.

    Attributes:
        change: (d_model, d_k) float32 what it adds to the weight.
        keys: (facts, d_k) float32 keys at the last tokens of its facts' prompts.
        shards: number of shards that it was merged from; 1 for a shard.
    """

    change: Tensor
    keys: Tensor
    shards: int = 1

    @property
    def least(self) -> float:
        """The least activation distance of its facts."""
        return float(activation_distances(self.change, self.keys).min())

    def to(self, device: torch.device) -> Self:
        return replace(self, change=self.change.to(device), keys=self.keys.to(device))


def activation_distances(change: Tensor, keys: Tensor) -> Tensor:
    """(n,) activation distance of each of ``keys`` (n, d_k), float32."""
    distances: Tensor = torch.nn.functional.linear(keys.float(), change).norm(dim=1)
    return distances


def random_mask(shape: Sequence[int], share: float, seed: int, shard: int) -> Tensor:
    """The entries that a shard may change: each with probability ``share``, float32 zeros and ones of ``shape``.

    The masks of different shards are independent. A batch that continues a shard gets the same mask.
    """
    return (torch.rand(*shape, generator=numbered_generator(seed, shard)) < share).float()


def margin_losses(facts: Tensor, unrelated: Tensor, *, most: float, least: float, gap: float) -> Tensor:
    """The loss of each fact that keeps its activation distance above those of unrelated text  [Wang et al. 2024].

    max(0, unrelated - most) + max(0, least - fact) + max(0, gap - (fact - unrelated)). As in the authors' code, the
    first and the last one are means over those of the unrelated distances for which they are positive.

    Args:
        facts: (B, contexts) activation distances of each fact.
        unrelated: (m,) those of unrelated text.
        most: alpha.
        least: beta.
        gap: gamma.

    Returns:
        (B,) losses, means over the contexts.
    """
    gaps = _mean_of_positive(gap - facts[..., None] + unrelated)
    each = _mean_of_positive(unrelated - most) + (least - facts).relu() + gaps
    return each.mean(1)


def _mean_of_positive(values: Tensor) -> Tensor:
    """The mean along the last dimension of the values above 0; 0 if there are none."""
    return values.relu().sum(-1) / (values > 0).sum(-1).clamp(min=1)


def merged_changes(changes: Sequence[Tensor], density: float) -> Tensor:
    """Merge changes by TIES  [Yadav et al. 2023]: keep the largest, choose a sign for each entry, and average.

    Args:
        changes: changes of the same shape, float32.
        density: the share of each change's entries that is kept, those of the largest magnitude.

    Returns:
        For each entry, the mean of the kept values that have the sign of their sum; 0 if there are none.
    """
    kept = torch.stack([_largest(change, density) for change in changes])
    agree = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return torch.where(agree, kept, 0).sum(0) / agree.sum(0).clamp(min=1)


def _largest(change: Tensor, density: float) -> Tensor:
    count = max(1, int(density * change.numel()))
    places = change.abs().flatten().topk(count, sorted=False).indices
    kept = torch.zeros_like(change).flatten()
    kept[places] = change.flatten()[places]
    return kept.view_as(change)
