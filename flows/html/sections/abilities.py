"""General abilities of the model before and after the edit."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.flows.html.blocks import Section
from factsmith.flows.html.numbers import interval, percent
from factsmith.flows.reporting.page import lm_eval_table
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.abilities.harness_stage import HarnessResult
from factsmith.tasks.abilities.measures import METRICS, Ability

__all__ = ["abilities"]


def abilities(found: Sequence[Ability], lm_eval: Sequence[HarnessResult] = ()) -> Section:
    """The tasks that Factsmith asks, and those of lm-eval."""
    blocks = [*([_table(found)] if found else []), *([lm_eval_table(lm_eval)] if lm_eval else [])]
    return Section("General abilities", blocks)


def _table(found: Sequence[Ability]) -> TextTable:
    """One row per task, way of answering and metric."""
    columns = ["task", "answer by", "metric", "before", "after", "95 % interval", "change, 95 % interval", "examples"]
    table = TextTable("", columns, labels=3, caption=_about(found))
    for place, one in enumerate(found):
        first = not place or (found[place - 1].task, found[place - 1].way) != (one.task, one.way)
        if first and place:
            table.end_section()
        table.add(
            one.task if first else "",
            one.way if first else "",
            one.metric,
            percent(one.before),
            percent(one.after),
            interval(one.interval),
            interval(one.change),
            f"{one.examples:,}" if first else "",
            weak=one.change[1] < 0 and one.metric != "unanswered",
        )
    return table


def _about(found: Sequence[Ability]) -> str:
    """What the columns are."""
    shown = [f"{name}: {meaning}." for name, meaning in METRICS.items() if any(one.metric == name for one in found)]
    edits = found[0].edits
    return " ".join(
        [
            "Percent. Intervals are bootstrap intervals over examples, of the change on the same examples. "
            "A metric that got worse beyond its interval is red.",
            *([f"After: mean over the edits of {edits} batches."] if edits > 1 else []),
            *shown,
        ]
    )
