"""The search of ``tune``, coarse to fine on a lattice of settings around the start."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Point", "Search"]

_WIDEST = 6
"""Most steps from the start: a factor of 1000 in lambda, and of 8 in clamp and learning rate."""


@dataclass(frozen=True)
class Point:
    """Settings, as whole numbers of steps from the start.

    Attributes:
        weight: steps of lambda, each a factor of sqrt(10).
        clamp: steps of the clamp, each a factor of sqrt(2).
        rate: steps of the learning rate, each a factor of sqrt(2).
    """

    weight: int = 0
    clamp: int = 0
    rate: int = 0

    @property
    def pair(self) -> tuple[int, int]:
        """The clamp and the learning rate, which value vectors depend on."""
        return self.clamp, self.rate


class Search:
    """Proposes points one by one and learns from their scores.

    Value vectors take the most time and depend only on clamp and learning rate, so each pair of these is tried with
    several lambdas. The first pair is the start's, with its lambda, a tenth of it, and ten times it. Later pairs are
    drawn at random from the untried neighbours of the best pair, each with the best lambda and its neighbours. In the
    first half of the trials a neighbour is two steps away, in the second half one step; the other distance is used if
    no such neighbour is left. The second half starts with the lambdas between those that the best pair was tried with.
    The same scores and seed give the same points.

    Args:
        trials: most points to propose.
        seed: seed of the random draws.
    """

    def __init__(self, trials: int, seed: int) -> None:
        self._trials = trials
        self._random = random.Random(f"search/{seed}")
        self._scores: dict[Point, float | None] = {}
        self._queue: list[Point] = []
        self._fine = False

    def propose(self) -> Point | None:
        """The point to try next; ``None`` if all trials or all neighbours are used up."""
        if len(self._scores) >= self._trials:
            return None
        if not self._queue:
            self._queue = self._round()
        return self._queue.pop(0) if self._queue else None

    def tell(self, point: Point, score: float | None) -> None:
        """Record the score of ``point``, or ``None`` if it failed."""
        self._scores[point] = score

    @property
    def best(self) -> Point:
        """The point with the highest score, the earlier one if two are equal; the start if all points failed."""
        scored = {point: score for point, score in self._scores.items() if score is not None}
        return max(scored, key=lambda point: scored[point]) if scored else Point()

    def _round(self) -> list[Point]:
        best = self.best
        if not self._scores:
            return self._untried(best.weight, best.pair, 2)
        if not self._fine and 2 * len(self._scores) >= self._trials:
            self._fine = True
            if found := self._untried(best.weight, best.pair, 1):
                return found
        for step in (1, 2) if self._fine else (2, 1):
            tried = {point.pair for point in self._scores}
            around = [
                (best.clamp + step * clamp, best.rate + step * rate) for clamp in (-1, 0, 1) for rate in (-1, 0, 1)
            ]
            free = [pair for pair in around if pair not in tried and max(map(abs, pair)) <= _WIDEST]
            if free:
                return self._untried(best.weight, self._random.choice(free), step)
        return []

    def _untried(self, weight: int, pair: tuple[int, int], step: int) -> list[Point]:
        points = [Point(weight + offset, *pair) for offset in (0, -step, step)]
        return [point for point in points if point not in self._scores and abs(point.weight) <= _WIDEST]
