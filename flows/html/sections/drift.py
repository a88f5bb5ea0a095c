"""How far the predictions of text that is not about the facts have moved."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.flows.html.blocks import Section
from factsmith.flows.html.numbers import number
from factsmith.flows.reporting.drift import DriftMeasure
from factsmith.flows.reporting.text_table import TextTable

__all__ = ["drift"]


def drift(measures: Sequence[DriftMeasure]) -> Section:
    """One row per measure."""
    edits = measures[0].edits
    worst = ["worst"] if edits > 1 else []
    columns = ["measure", "before", "after", *worst, "meaning"]
    caption = f"after: mean of the first {edits} edits; worst: the largest of them" if edits > 1 else ""
    table = TextTable("", columns, texts=["meaning"], caption=caption)
    for one in measures:
        values = [one.before, one.after, *([one.worst] if worst else [])]
        table.add(one.measure, *map(number, values), one.meaning)
    return Section("Drift", ["The prediction of text that is not about the facts.", table])
