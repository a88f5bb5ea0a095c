"""Numbers as a report shows them."""

from __future__ import annotations

__all__ = ["counted", "interval", "number", "percent", "size", "span"]

_SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def percent(value: float | None) -> str:
    """A metric in percent."""
    return "–" if value is None else f"{value:z.1f}".replace("-", "−")


def interval(ends: tuple[float, float] | None) -> str:
    """The ends of an interval in percent."""
    return "–" if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def number(value: float | None) -> str:
    """A count, or a measurement with four digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 fact``, ``2 facts``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: float | None) -> str:
    """A number of bytes."""
    if count is None:
        return "–"
    for unit, scale in _SIZES.items():
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def span(seconds: float) -> str:
    """A time."""
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
