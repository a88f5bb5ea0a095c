"""Which layers to edit, from average indirect effects at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MOST_LAYERS", "critical_layers", "mediated"]

MOST_LAYERS = 6
"""As many as MEMIT edits in GPT-J."""

_SHARE = 0.5


def mediated(hidden: Sequence[float], severed: Sequence[float]) -> list[float]:
    """For each layer, what of its state's effect goes through the subject's MLPs above it: what severing them costs."""
    return [whole - rest for whole, rest in zip(hidden, severed, strict=True)]


def critical_layers(effects: Sequence[float], *, most: int = MOST_LAYERS) -> list[int]:
    """The layers around the peak of ``effects`` where they stay above half of it; ascending and contiguous.

    MEMIT edits the MLPs that mediate recall at the subject's last token, a range that ends where severing the MLPs
    above no longer matters; its authors read the range off a plot of that gap (Meng et al. 2022b, section 4.1 and
    figure 3, 3 to 8 in GPT-J). This is that reading as a rule. Of more than ``most`` such layers, the contiguous
    ``most`` with the greatest sum are taken, the upper ones where two sums are equal.

    Args:
        effects: of each layer, as ``mediated`` gives them.
        most: layers at most.

    Returns:
        The layers; none if no effect is above zero.
    """
    peak = max(range(len(effects)), key=lambda layer: effects[layer])
    if effects[peak] <= 0:
        return []
    first = last = peak
    while first > 0 and effects[first - 1] >= _SHARE * effects[peak]:
        first -= 1
    while last + 1 < len(effects) and effects[last + 1] >= _SHARE * effects[peak]:
        last += 1
    size = min(most, last + 1 - first)
    start = max(range(first, last + 2 - size), key=lambda at: (sum(effects[at : at + size]), at))
    return list(range(start, start + size))
