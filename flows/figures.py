"""Figures that are logged with a run."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

__all__ = ["before_and_after"]


def before_and_after(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Figure:
    """Bars of ES, PS, NS and S before and after an edit, in percent."""
    names = ("ES", "PS", "NS", "S")
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for offset, label, metrics, colour in ((-0.2, "before", before, "#9aa5b1"), (0.2, "after", after, "#2f6f9f")):
        heights = [metrics[name] or 0.0 for name in names]
        bars = axes.bar([place + offset for place in range(len(names))], heights, 0.38, label=label, color=colour)
        axes.bar_label(bars, ["-" if metrics[name] is None else f"{metrics[name]:.1f}" for name in names], padding=2)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 112)
    axes.set_ylabel("percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure
