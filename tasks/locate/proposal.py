"""The layers to edit, proposed from average indirect effects at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MOST_LAYERS", "critical_layers", "mediated"]

MOST_LAYERS = 6
"""The most layers that are proposed: as many as MEMIT edits in GPT-J."""

_SHARE = 0.5


def mediated(hidden: Sequence[float], severed: Sequence[float]) -> list[float]:
    """For each layer, the part of its state's effect that is lost when the MLPs above are severed.

    That part goes through the MLPs above at the subject's last token.
    """
    return [whole - rest for whole, rest in zip(hidden, severed, strict=True)]


def critical_layers(effects: Sequence[float], *, most: int = MOST_LAYERS) -> list[int]:
    """The layers around the peak of ``effects`` whose effects are at least half of it, ascending and contiguous.

    MEMIT edits the MLPs that mediate recall at the subject's last token. This range of layers ends where severing the
    MLPs above no longer matters. MEMIT's authors read it off a plot of the lost effect (Meng et al. 2022b, section 4.1
    and figure 3; layers 3 to 8 in GPT-J). This function makes their reading a rule. If more than ``most`` layers
    qualify, it takes the ``most`` contiguous ones with the largest sum, and the upper ones if two sums are equal.

    Args:
        effects: effect of each layer, as ``mediated`` returns them.
        most: most layers to return.

    Returns:
        The layers; empty if no effect is above zero.
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
