"""How the scores of a sequence change with the number of edits."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.flows.html.blocks import Charts, Section
from factsmith.flows.html.chart import Line, LineChart, is_wide
from factsmith.flows.reporting.curves import (
    ALL_FACTS,
    COLLAPSE,
    FIRST_FACTS,
    KL,
    PERPLEXITY,
    RELATIVE,
    Curves,
    collapse,
)
from factsmith.tasks.abilities.measures import ACCURACY, Ability
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.summary import FIRST

__all__ = ["trajectory"]


def trajectory(curves: Curves, families: Sequence[MetricFamily], abilities: Sequence[Ability] = ()) -> Section:
    """Curves of the scores, of drift, of general abilities and of the changes of each layer.

    Args:
        curves: the curves.
        families: the metric families of the scores.
        abilities: the general abilities. The accuracies that have curves are drawn.
    """
    abilities = [one for one in abilities if one.metric == ACCURACY and ALL_FACTS.format(one.name) in curves]
    charts = [chart for family in families if (chart := _scores(curves, family)).lines]
    if points := curves.get(PERPLEXITY):
        lines = [Line("perplexity", points)]
        wide = is_wide(lines)
        limits = [COLLAPSE * points[0]] if wide else []
        charts.append(LineChart("Perplexity of held-out text", "edits", lines, log_y=wide, limits=limits))
    if points := curves.get(KL):
        charts.append(LineChart("KL(unedited || edited) of held-out text, nats", "edits", [Line("KL", points)]))
    if abilities:
        lines = [Line(one.name, curves[ALL_FACTS.format(one.name)]) for one in abilities]
        charts.append(LineChart("General abilities, percent", "edits", lines, share=True))
    prefix = f"{RELATIVE}/layer_"
    layers = [Line(f"layer {key.removeprefix(prefix)}", one) for key, one in curves.items() if key.startswith(prefix)]
    if layers:
        charts.append(LineChart("Norm of all changes / norm of the weight", "edits", layers))
    return Section("By number of edits", [_said(curves), Charts(charts)])


def _scores(curves: Curves, family: MetricFamily) -> LineChart:
    """The metrics of a family: those that its harmonic mean combines, or else all."""
    names = [family.mean[0], *family.mean[1]] if family.mean else list(family.metrics)
    lines = []
    for colour, name in enumerate(names):
        if points := curves.get(ALL_FACTS.format(name)):
            lines.append(Line(name, points, colour=colour))
        first = curves.get(FIRST_FACTS.format(name))
        # The first facts are all facts until there are more.
        if first and points != first and family.mean and name == family.mean[0]:
            lines.append(Line(f"{name}, first {FIRST}", first, dashed=True, colour=colour))
    values = [value for line in lines for value in line.points.values()]
    share = all(0 <= value <= 100 for value in values)
    return LineChart(f"{family.name}, percent, all facts so far", "edits", lines, share=share)


def _said(curves: Curves) -> str:
    if PERPLEXITY not in curves:
        return "Scores after each number of edits."
    edits = collapse(curves)
    told = f"at least {COLLAPSE:g} times its start"
    if edits is None:
        return f"The model has not collapsed: perplexity of held-out text never was {told}."
    return f"The model has collapsed: after {edits:,} edits, perplexity of held-out text was {told}."
