"""The codebook of GRACE: keys of prompts, each with a radius, a label and a value  [Hartvigsen et al. 2023].

An entry answers for the prompts whose key is within its radius, unless another entry is nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

__all__ = ["Codebook"]

_GAP = 1e-5
"""What the radii of two entries with different labels leave between them [Hartvigsen et al. 2023, their code]."""

_ROUNDING = 1e-3
"""Relative difference of keys, and of distances, that may be rounding. The key of a prompt depends a little on the
other rows of its pass. Without this margin, some facts would miss the entries that were made for them."""


@dataclass(frozen=True)
class Codebook:
    """Entries, in the order in which they were made.

    Attributes:
        keys: (n, d_k) float32.
        values: (n, d_model) float32; what an entry puts in place of the MLP's output.
        radii: (n,) float32.
        labels: the tokens of the new object of each entry.
    """

    keys: Tensor
    values: Tensor
    radii: Tensor
    labels: tuple[tuple[int, ...], ...]

    @classmethod
    def empty(cls, key_width: int, width: int) -> Self:
        return cls(torch.zeros(0, key_width), torch.zeros(0, width), torch.zeros(0), ())

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Self:
        return replace(self, keys=self.keys.to(device), values=self.values.to(device), radii=self.radii.to(device))

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entry of each of ``queries`` (m, d_k), (m,) int64, and its Euclidean distance, (m,) float32."""
        # A product of matrices would lose the digits of small distances.
        distances = torch.cdist(queries.float(), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        least, entry = distances.min(1)
        return entry, least

    def find(self, queries: Tensor) -> Tensor:
        """The entry that answers for each of ``queries`` (m, d_k), (m,) int64; -1 if none does."""
        if not len(self):
            return torch.full((len(queries),), -1, device=queries.device)
        entry, distance = self.nearest(queries)
        return entry.where(distance <= self.radii[entry], -1)

    def entered(self, key: Tensor, label: Sequence[int], radius: float, value: Tensor) -> tuple[Self, int, bool]:
        """Enter a fact.

        If no entry is near, the fact gets one of its own. If the nearest entry has the fact's label, its radius grows
        until it contains the key. If it has another label, the fact gets its own entry, and both radii become half of
        their distance, that of the earlier entry a little less. "Near" is within the entry's radius and ``radius``.

        If the keys are the same up to rounding, no radius can tell the facts apart. The later fact then takes the place
        of the earlier one. This is our addition: in the authors' code, neither would be found.

        Args:
            key: (d_k,) the key of the fact's prompt.
            label: the tokens of its new object.
            radius: the radius of a new entry.
            value: (d_model,) the value of a new entry before it is trained.

        Returns:
            The codebook with the fact, its entry, and whether this entry is new.
        """
        key, label, count = key.float(), tuple(label), len(self)
        if count:
            entry, distance = (one.item() for one in self.nearest(key[None]))
            entry = int(entry)
            near = distance <= radius + float(self.radii[entry])
            if near and self.labels[entry] == label:
                radii = self.radii.clone()
                if distance > radii[entry]:
                    radii[entry] = distance * (1 + _ROUNDING)
                return replace(self, radii=radii), entry, False
            if near and distance / 2 - _GAP <= _ROUNDING * float(key.norm()):
                return self._with(entry, key, label, min(radius, float(self.radii[entry])), value), entry, True
            if near:
                radii = self.radii.clone()
                radii[entry] = distance / 2 - _GAP
                return replace(self, radii=radii)._more(key, label, distance / 2, value), count, True
        return self._more(key, label, radius, value), count, True

    def with_facts(
        self, keys: Tensor, labels: Sequence[Sequence[int]], radius: float, value: Callable[[int, int], Tensor]
    ) -> tuple[Self, list[int]]:
        """Enter facts one after another.

        Args:
            keys: (B, d_k) the keys of their prompts.
            labels: the tokens of their new objects.
            radius: the radius of a new entry.
            value: gives the value of a new entry before it is trained, from the fact's place and the number of entries
                that the facts before it have made.

        Returns:
            The codebook with the facts, and the entry of each; -1 for a fact whose place a later one has taken.
        """
        codebook, entries, made = self, list[int](), 0
        for place, (key, label) in enumerate(zip(keys.cpu(), labels, strict=True)):
            codebook, entry, new = codebook.entered(key, label, radius, value(place, made))
            entries = [-1 if new and earlier == entry else earlier for earlier in entries] + [entry]
            made += new
        return codebook, entries

    def _more(self, key: Tensor, label: tuple[int, ...], radius: float, value: Tensor) -> Self:
        return replace(
            self,
            keys=torch.cat([self.keys, key[None]]),
            values=torch.cat([self.values, value.float()[None]]),
            radii=torch.cat([self.radii, torch.tensor([radius])]),
            labels=(*self.labels, label),
        )

    def _with(self, entry: int, key: Tensor, label: tuple[int, ...], radius: float, value: Tensor) -> Self:
        """The codebook with another fact in place of ``entry``."""
        keys, values, radii, labels = self.keys.clone(), self.values.clone(), self.radii.clone(), list(self.labels)
        keys[entry], values[entry], radii[entry], labels[entry] = key, value, radius, label
        return replace(self, keys=keys, values=values, radii=radii, labels=tuple(labels))
