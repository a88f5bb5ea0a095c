"""How well C0 is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from factsmith.flows.html.blocks import Block, Charts, Section
from factsmith.flows.html.chart import Line, LineChart
from factsmith.flows.html.numbers import number
from factsmith.flows.reporting.reports import LayerReport, Report
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.covariance.leverage_stage import Leverages
from factsmith.tasks.pipeline.workspace import StageReport

__all__ = ["covariance"]

_MEASURED = {"factor": ("rank", "energy", "ridge"), "principal directions": ("rank",)}
"""What a stage measures of each layer, of what it makes from C0."""


def covariance(
    report: Report, width: int, layers: Sequence[LayerReport] = (), leverages: Leverages | None = None
) -> Section | None:
    """Tokens, d_m, held-out leverage and rank; ``None`` if the method reads no corpus.

    Args:
        report: the report of the run.
        width: the key width d_k.
        layers: how well each layer's C0 is known, if that was measured.
        leverages: the held-out leverages that led to the number of tokens, if it was searched for.
    """
    if not report.dynamic_multiplier:
        return None
    tokens = round(report.dynamic_multiplier * width)
    blocks: list[Block] = [
        f"C0 covers {tokens:,} tokens: d_m = {number(report.dynamic_multiplier)}, in multiples of the key width "
        f"d_k = {width:,}. Its rank is at most {min(tokens, width):,}."
    ]
    if layers:
        blocks.append(_measured(layers))
    elif leverages is None:
        blocks.append(
            "Held-out leverage was not measured. `factsmith precompute --report` measures it, and the spectrum."
        )
    if leverages is not None and any(len(curve) > 1 for curve in leverages.curves.values()):
        blocks.append(_curve(leverages, width))
    made = _by_layer(report.stages)
    return Section("How well C0 is known", [*blocks, *([made] if made.rows else [])])


def _measured(layers: Sequence[LayerReport]) -> TextTable:
    table = TextTable(
        "C0 of each edited layer",
        ["layer", "held-out leverage", "effective rank", "condition number", "largest", "median", "smallest"],
        caption="Held-out leverage is close to 1 if C0 is well estimated. The last three columns are eigenvalues.",
    )
    for one in layers:
        leverage = "–" if one.leverage is None else f"{one.leverage:.3f}"
        condition = "singular" if one.condition_number is None else f"{one.condition_number:.1e}"
        values = [f"{one.eigenvalues[name]:.1e}" for name in ("largest", "median", "smallest")]
        table.add(str(one.layer), leverage, f"{one.effective_rank:.1f}", condition, *values)
    return table


def _curve(leverages: Leverages, width: int) -> Charts:
    lines = [
        Line(f"layer {layer}", {tokens / width: value for tokens, value in curve.items()})
        for layer, curve in leverages.curves.items()
    ]
    return Charts([LineChart("Held-out leverage (1: C0 is well estimated)", "d_m", lines, log_x=True, log_y=True)])


def _by_layer(stages: Sequence[StageReport]) -> TextTable:
    """What was made from each layer's C0."""
    columns: dict[str, Mapping[str, float]] = {}
    for stage in stages:
        for name in _MEASURED.get(stage.name, ()):
            prefix = f"{name}/layer_"
            found = {key.removeprefix(prefix): one for key, one in stage.metrics.items() if key.startswith(prefix)}
            if any(value and math.isfinite(value) for value in found.values()):
                columns[f"{stage.name}: {name}"] = found
    table = TextTable("Made from C0, by layer", ["layer", *columns])
    for layer in sorted({layer for found in columns.values() for layer in found}, key=int):
        table.add(layer, *(number(found.get(layer)) for found in columns.values()))
    return table
