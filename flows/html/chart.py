"""Line charts as SVG: where lines, ticks and labels are drawn. A template draws them.

Charts are drawn here and not by Matplotlib, because an image has one colour scheme and no text to read or search, and
importing Matplotlib takes longer than rendering a whole report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Line", "LineChart", "is_wide"]

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 38
"""Space around the lines, in the units of the drawing."""

_TICKS = 5
"""Number of ticks of an axis, about."""

_CLOSE_UP = 50.0
"""If all shares are above this, the axis begins a little below them."""

_WIDE = 10
"""Values whose largest is so many times the smallest are wide."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: name of the line.
        points: y by x. Values that are not finite are left out.
        ends: the interval of y, by x.
        dashed: whether the line is dashed.
        colour: number of its colour; ``None`` to give it the next one.
    """

    name: str
    points: Mapping[float, float] | Mapping[int, float]
    ends: Mapping[float, tuple[float, float]] | None = None
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class LineChart:
    """A line chart.

    Attributes:
        title: its title.
        x: what the horizontal axis shows.
        lines: the lines.
        share: whether the vertical axis ends at 100. It begins at 0 unless all values are far above.
        log_x: whether the horizontal axis is logarithmic. It then has a tick at each x.
        log_y: whether the vertical axis is logarithmic.
        limits: heights at which a dotted line is drawn.
    """

    title: str
    x: str
    lines: Sequence[Line]
    share: bool = False
    log_x: bool = False
    log_y: bool = False
    limits: Sequence[float] = ()

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM

    @property
    def coloured(self) -> list[tuple[Line, int]]:
        """Each line, and the number of its colour."""
        return [(line, place if line.colour is None else line.colour) for place, line in enumerate(self.lines)]

    @property
    def limit_heights(self) -> list[float]:
        """Where the dotted lines are drawn."""
        return [self.at(self._x_range[0], limit)[1] for limit in self.limits]

    def ends_of(self, line: Line) -> list[tuple[float, float, float]]:
        """Where the intervals of a line are drawn: x and both ends."""
        ends = {x: ends for x, ends in (line.ends or {}).items() if x in line.points}
        return [(*self.at(x, low), self.at(x, high)[1]) for x, (low, high) in ends.items()]

    def named(self, line: Line) -> list[tuple[Point, Point]]:
        """Each point of a line: where it is drawn, and what it says."""
        return [(self.at(*point), point) for point in _finite(line.points)]

    def at(self, x: float, y: float) -> Point:
        """Where a point is drawn."""
        across, up = self._x_range, self._y_range
        return (
            round(self.left + (self.right - self.left) * _share(x, across, self.log_x), 1),
            round(self.bottom - (self.bottom - self.top) * _share(y, up, self.log_y), 1),
        )

    @property
    def x_ticks(self) -> Iterator[tuple[float, str]]:
        """Where the ticks of the horizontal axis are, and their labels."""
        low, high = self._x_range
        found = sorted({x for line in self.lines for x, _ in _finite(line.points)})
        ticks = found if self.log_x else [tick for tick in _round_numbers(low, high) if low <= tick <= high]
        last = -math.inf
        for tick in ticks:
            place, _ = self.at(tick, self._y_range[0])
            label = f"{tick:,.0f}" if tick == int(tick) else f"{tick:g}"
            if place - last > 9 * len(label):
                last = place
                yield place, label

    @property
    def y_ticks(self) -> Iterator[tuple[float, str]]:
        """Where the ticks of the vertical axis are, and their labels."""
        low, high = self._y_range
        for tick in _powers(low, high) if self.log_y else _round_numbers(low, high):
            _, place = self.at(self._x_range[0], tick)
            yield place, f"{tick:.4g}" if abs(tick) < 1e4 else f"{tick:.0e}"

    @cached_property
    def _x_range(self) -> Point:
        found = [x for line in self.lines for x, _ in _finite(line.points)] or [0.0, 1.0]
        return min(found), max(found)

    @cached_property
    def _y_range(self) -> Point:
        found = [y for line in self.lines for _, y in _finite(line.points)]
        found += [end for line in self.lines for ends in (line.ends or {}).values() for end in ends]
        found = [*found, *self.limits] or [0.0, 1.0]
        low, high = min(found), max(found)
        if self.share:
            return (0.0 if low < _CLOSE_UP else 10 * math.floor(low / 10 - 0.5)), 100.0
        if self.log_y:
            return low / 1.1, high * 1.1
        ticks = _round_numbers(low, high)
        return min(low, ticks[0]), max(high, ticks[-1])


def is_wide(lines: Iterable[Line]) -> bool:
    """Whether values differ so much that a logarithmic axis shows them better."""
    found = [y for line in lines for _, y in _finite(line.points)]
    return bool(found) and min(found) > 0 and max(found) > _WIDE * min(found)


def _finite(points: Mapping[float, float] | Mapping[int, float]) -> list[Point]:
    return [(x, y) for x, y in points.items() if math.isfinite(y)]


def _share(value: float, ends: Point, logarithmic: bool) -> float:
    """Where between ``ends`` a value is, from 0 to 1; in the middle if both are the same."""
    low, high = ends
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def _round_numbers(low: float, high: float) -> list[float]:
    """About ``_TICKS`` round numbers that begin at or below ``low`` and end at or above ``high``."""
    width = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(width / _TICKS))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * _TICKS >= width * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers; if there are fewer than two, also 2 and 5 times a power."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        found = [one for one in found if low <= one <= high]
        if len(found) >= 2:
            return found[:: max(1, len(found) // _TICKS)]
    return found
