"""A scope classifier: which fact, if any, a prompt is about. It compares the keys of prompts' last tokens.

A fact is the mean direction of its prompt's keys in all contexts, measured from the mean key of unrelated text. The
similarity of a prompt and a fact is the cosine of their directions. Each fact has a threshold of its own, between the
least similarity of its own prompts and the greatest one of prompts that are about something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Scope"]

_ROUNDING = 1e-3
"""Difference of similarities that may be rounding. The key of a prompt depends a little on the other rows of its pass.
"""


@dataclass(frozen=True)
class Scope:
    """The facts in an edit memory, in the order in which they were entered.

    Attributes:
        centre: (d_k,) float32 mean key of unrelated text.
        facts: (n, d_k) float32 direction of each fact, of length 1.
        inside: (n,) float32 least similarity of the prompts of each fact to it.
        outside: (n,) float32 greatest similarity of any other known prompt to it.
        share: where a threshold is between ``outside`` (0) and ``inside`` (1).
    """

    centre: Tensor
    facts: Tensor
    inside: Tensor
    outside: Tensor
    share: float

    @classmethod
    def empty(cls, centre: Tensor, share: float) -> Self:
        return cls(centre, centre.new_zeros(0, len(centre)), centre.new_zeros(0), centre.new_zeros(0), share)

    @property
    def thresholds(self) -> Tensor:
        """(n,) least similarity that is within the scope of each fact.

        If something else is as similar as the fact's own prompts, its own prompts are within its scope all the same.
        """
        gaps = (self.inside - self.outside).clamp(min=0)
        return self.inside - (1 - self.share) * gaps - _ROUNDING

    def to(self, device: torch.device) -> Self:
        moved = {name: getattr(self, name).to(device) for name in ("centre", "facts", "inside", "outside")}
        return replace(self, **moved)

    def directions(self, keys: Tensor) -> Tensor:
        """The directions of ``keys`` (..., d_k) from the centre, of length 1, float32."""
        return normalize(keys.float() - self.centre, dim=-1)

    def find(self, keys: Tensor) -> Tensor:
        """The fact whose threshold each of ``keys`` (m, d_k) exceeds most, (m,) int64; -1 if it exceeds none."""
        above, fact = (self.directions(keys) @ self.facts.T - self.thresholds).max(1)
        return fact.where(above >= 0, -1)

    def extended(self, keys: Tensor, others: Sequence[Tensor]) -> Self:
        """Enter facts.

        Args:
            keys: (B, contexts, d_k) keys of each fact's prompt in all contexts.
            others: for each fact, keys (m, d_k) of some prompts that are not about it, however similar. The prompts of
                the other facts, also of those that were entered before, are not about it either.
        """
        own = self.directions(keys)
        new = normalize(own.mean(1), dim=-1)
        inside = torch.einsum("bcd,bd->bc", own, new).amin(1)
        outside = torch.stack([(self.directions(one) @ fact).max() for one, fact in zip(others, new, strict=True)])
        between = torch.einsum("bcd,ad->bca", own, torch.cat([self.facts, new])).amax(1)
        before = len(self.facts)
        among = between[:, before:].clone().fill_diagonal_(-1).amax(0)
        outside = torch.maximum(outside, among)
        known = self.outside
        if before:
            outside = torch.maximum(outside, (new @ self.facts.T).amax(1))
            known = torch.maximum(known, between[:, :before].amax(0))
        return replace(
            self,
            facts=torch.cat([self.facts, new]),
            inside=torch.cat([self.inside, inside]),
            outside=torch.cat([known, outside]),
        )
