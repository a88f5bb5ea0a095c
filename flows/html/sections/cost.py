"""What a run cost: time, memory, tokens and bytes of each stage."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.flows.html.blocks import Section
from factsmith.flows.html.numbers import number, size, span
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.pipeline.workspace import StageReport

__all__ = ["cost"]

_COUNTED = ("facts", "records", "rows")
"""What a stage that reads no tokens counts."""


def cost(stages: Sequence[StageReport]) -> Section:
    """The stages in their order."""
    on_gpu = any("gpu_memory" in stage.metrics for stage in stages)
    columns = ["stage", "state", "time", "tokens", "facts", "bytes", "memory", *(["GPU memory"] if on_gpu else [])]
    table = TextTable(
        "",
        columns,
        labels=2,
        caption="memory: the most that the process had used when the stage ended. A cached stage only reads what an "
        "earlier run built.",
    )
    for stage in stages:
        measured = stage.metrics
        count = next((measured[name] for name in _COUNTED if name in measured), None)
        memory = [size(measured.get(name)) for name in ("memory", *(["gpu_memory"] if on_gpu else []))]
        table.add(
            stage.name,
            stage.state,
            span(stage.seconds),
            number(measured.get("tokens")),
            number(count),
            size(measured.get("bytes")),
            *memory,
        )
    cached = sum(stage.state == "cached" for stage in stages)
    total = sum(stage.seconds for stage in stages)
    table.end_section()
    rest = [""] * (len(columns) - 3)
    table.add(f"{len(stages)} stages", f"{cached} cached", span(total), *rest, strong=True)
    return Section("Cost", [table])
