"""A campaign: one check on random cases, for as long as the user wants, with counts at the end."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

__all__ = ["Campaign"]

_MINUTES = float(os.environ.get("FACTSMITH_CAMPAIGN", "0"))
"""How long each campaign lasts. Without a number of minutes, it has a few cases, always the same ones."""

_SEED = int(os.environ.get("FACTSMITH_CAMPAIGN_SEED", "0"))


class Campaign:
    """Random cases of one check.

    Args:
        name: what is checked.
        few: number of cases if the user sets no time.

    Attributes:
        random: where cases are drawn from. The same seed gives the same cases.
        counts: how often each outcome was seen.
    """

    def __init__(self, name: str, few: int) -> None:
        self._name = name
        self._few = few
        self.random = random.Random(f"{name} {_SEED}")
        self.counts: Counter[str] = Counter()

    def cases(self) -> Iterator[int]:
        """The numbers of the cases, from 0, until the time is over. Then prints the counts."""
        started = time.monotonic()
        number = 0
        while time.monotonic() - started < 60 * _MINUTES if _MINUTES else number < self._few:
            yield number
            number += 1
        seconds = time.monotonic() - started
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        print(f"\n{self._name}: {number} cases in {seconds:.0f} s, seed {_SEED}: {counts}")
