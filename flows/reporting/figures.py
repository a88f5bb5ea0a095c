"""Figures that are logged with a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from factsmith.flows.reporting.curves import ALL_FACTS, FIRST_FACTS, PERPLEXITY, RELATIVE
from factsmith.tasks.evaluation.summary import FIRST

__all__ = [
    "before_and_after",
    "effects_by_role",
    "leverage_by_multiplier",
    "score_by_multiplier",
    "trajectory_figure",
    "trajectories_figure",
    "spectra",
]


def before_and_after(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Figure:
    """Bars of ES, PS, NS and S before and after an edit, in percent; or of all metrics if these were not measured."""
    names = [name for name in ("ES", "PS", "NS", "S") if name in before] or list(before)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for offset, label, metrics, colour in ((-0.2, "before", before, "#9aa5b1"), (0.2, "after", after, "#2f6f9f")):
        heights = [metrics[name] or 0.0 for name in names]
        bars = axes.bar([place + offset for place in range(len(names))], heights, 0.38, label=label, color=colour)
        axes.bar_label(bars, ["-" if metrics[name] is None else f"{metrics[name]:.1f}" for name in names], padding=2)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.12 * max(100.0, *(value or 0.0 for name in names for value in (before[name], after[name]))))
    axes.set_ylabel("percent")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


_KIND_TITLES = {"hidden": "output of a block", "mlp": "MLPs of a window", "attention": "attentions of a window"}


def effects_by_role(effects: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[int]) -> Figure:
    """Heat maps of the average indirect effect in percent, by role and layer. The proposed layers are framed."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, len(_KIND_TITLES)), _KIND_TITLES.items(), strict=True):
        by_role = effects[kind]
        cells = [[100 * value for value in row] for row in by_role.values()]
        image = axes.imshow(cells, aspect="auto", cmap="Purples", vmin=0, vmax=max(map(max, cells)) or 1)
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_yticks(range(len(by_role)), list(by_role) if kind == "hidden" else [""] * len(by_role))
        if layers:
            axes.axvspan(layers[0] - 0.5, layers[-1] + 0.5, fill=False, edgecolor="#d1495b", linewidth=1.5)
        figure.colorbar(image, ax=axes, label="percent")
    return figure


def score_by_multiplier(
    points: Mapping[str, Mapping[str, Mapping[float, tuple[float, float, float]]]], name: str, threshold: float
) -> Figure:
    """A score against d_m: one panel per variant, and one line with intervals per batch size.

    Args:
        points: the score and the ends of its interval in percent, by variant, batch size and d_m.
        name: name of the score.
        threshold: a dotted line is drawn at this share of the score at the largest d_m.
    """
    figure = Figure(figsize=(0.8 + 4.6 * len(points), 3.6), layout="constrained")
    panels = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
    for axes, (variant, by_batch) in zip(panels, points.items(), strict=True):
        for number, (batch, curve) in enumerate((batch, curve) for batch, curve in by_batch.items() if curve):
            # Lines are shifted a little, so that their intervals do not overlap.
            multipliers, found = [1.02**number * one for one in curve], list(curve.values())
            values = [value for value, _, _ in found]
            errors = [[value - low for value, low, _ in found], [high - value for value, _, high in found]]
            label = f"batch {batch}" if batch else name
            axes.errorbar(
                multipliers, values, errors, marker="o", markersize=4, capsize=2, color=f"C{number}", label=label
            )
            axes.axhline(threshold * values[-1], color=f"C{number}", linestyle=":", linewidth=1)
        ticks = sorted({one for curve in by_batch.values() for one in curve})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{one:g}" for one in ticks])
        axes.minorticks_off()
        axes.set_xlabel("dynamic multiplier d_m")
        axes.set_title(variant, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{name}, percent")
    panels[0].set_ylim(0, 103)
    title = f"dotted: {threshold:.0%} of the\nscore at the largest d_m"
    panels[-1].legend(frameon=False, fontsize="small", title=title)
    return figure


def leverage_by_multiplier(curves: Mapping[int, Mapping[float, float]], tolerance: float) -> Figure:
    """Held-out leverage against d_m, with one line per layer, and the tolerance.

    Args:
        curves: leverage by layer and d_m. Infinite values, where C0 is singular, are not drawn.
        tolerance: a dotted line is drawn at this leverage.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for layer, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", markersize=4, label=f"layer {layer}")
    axes.axhline(tolerance, color="#666666", linestyle=":", linewidth=1, label=f"tolerance {tolerance:g}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({multiplier for curve in curves.values() for multiplier in curve})
    axes.set_xticks(ticks, [f"{one:g}" for one in ticks])
    axes.xaxis.minorticks_off()
    _plain_ticks(axes)
    axes.set_xlabel("dynamic multiplier d_m")
    axes.set_ylabel("held-out leverage")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with numbers such as 2 and 20. The default labels are powers of ten."""
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))


def spectra(eigenvalues: Mapping[int, Sequence[float]]) -> Figure:
    """Eigenvalues of each layer's C0 in descending order, as shares of the largest."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for layer, values in eigenvalues.items():
        axes.plot(range(1, len(values) + 1), [value / values[0] for value in values], label=f"layer {layer}")
    axes.set_yscale("log")
    axes.set_xlabel("eigenvalue of C0")
    axes.set_ylabel("share of the largest")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def trajectory_figure(
    scores: Mapping[str, Mapping[int, float]], measures: Mapping[str, Mapping[int, float]], means: Sequence[str]
) -> Figure:
    """Scores, perplexity of held-out text and the relative change of each layer, against the number of edits.

    Args:
        scores: curves of scores and perplexity, by their names in MLflow.
        measures: curves of the changes of each layer, by their names in MLflow.
        means: names of the scores to draw.
    """
    perplexity = scores.get(PERPLEXITY)
    figure = Figure(figsize=(4.4 * (3 if perplexity else 2), 3.4), layout="constrained")
    panels = list(figure.subplots(1, 3 if perplexity else 2))
    for number, name in enumerate(means):
        for label, key, style in (
            ("all so far", ALL_FACTS.format(name), "-"),
            (f"first {FIRST}", FIRST_FACTS.format(name), "--"),
        ):
            if points := scores.get(key):
                panels[0].plot(
                    list(points), list(points.values()), style, marker="o", markersize=3, color=f"C{number}",
                    label=f"{name}, {label}",
                )  # fmt: skip
    panels[0].set_ylim(0, 103)
    panels[0].set_ylabel("percent")
    panels[0].set_title("score")
    if panels[0].lines:
        panels[0].legend(frameon=False, fontsize="small")
    prefix = f"{RELATIVE}/layer_"
    for key, points in measures.items():
        if key.startswith(prefix):
            panels[1].plot(list(points), list(points.values()), label=f"layer {key.removeprefix(prefix)}")
    panels[1].set_ylim(bottom=0)
    panels[1].set_title("norm of all changes / norm of the weight")
    if panels[1].lines:
        panels[1].legend(frameon=False, fontsize="small")
    if perplexity:
        panels[2].plot(list(perplexity), list(perplexity.values()), marker="o", markersize=3)
        if max(perplexity.values()) > 10 * min(perplexity.values()):
            panels[2].set_yscale("log")
        panels[2].set_title("perplexity of held-out text")
    for axes in panels:
        axes.set_xlabel("edits")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def trajectories_figure(panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Figure:
    """Curves of several sequences against the number of edits, one line per sequence.

    Args:
        panels: curves by title and by sequence. Titles of scores contain "percent".
    """
    figure = Figure(figsize=(4.4 * len(panels) + 2, 4), layout="constrained")
    drawn = dict.fromkeys(name for sequences in panels.values() for name in sequences)
    style = {name: {"color": f"C{place % 10}", "linestyle": "-:"[place // 10 % 2]} for place, name in enumerate(drawn)}
    for axes, (title, sequences) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, points in sequences.items():
            axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name, **style[name])
        if "percent" in title:
            axes.set_ylim(0, 103)
        else:
            axes.set_yscale("log")
            _plain_ticks(axes)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("edits")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    return figure
