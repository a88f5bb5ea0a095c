"""The scores that an export gives of its edit: those of the run that made it, or those of the edit truncated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from factsmith.artifacts.errors import InputError
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.summary import intervals, record_values
from factsmith.tasks.tracking.runs import ANSWERS, PastRun

__all__ = ["answer_scores", "past_scores", "record_scores"]


def answer_scores(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many facts hold before and after an edit.

    Args:
        answers: the fields of each ``Answer``.
    """
    return {
        "facts": len(answers),
        "facts_held": sum(one["holds"] for one in answers),
        "facts_held_before": sum(one.get("held", False) for one in answers),
    }


def record_scores(table: pa.Table, families: Sequence[MetricFamily], batch: int | None = None) -> dict[str, Any]:
    """The metrics before and after an edit, in percent, with the 95 % intervals of a run's report.

    Args:
        table: the values of records: ``phase``, ``batch``, ``record``, ``metric``, ``value``.
        families: the metric families.
        batch: number of the batch whose records count; ``None`` for all of them.
    """
    if batch is not None:
        rows = table.to_pylist()
        written = {row["record"] for row in rows if row["batch"] == batch}
        kept = [row for row in rows if row["batch"] == batch or (row["batch"] is None and row["record"] in written)]
        table = pa.Table.from_pylist(kept, schema=table.schema)
    before, after = (record_values(table, phase, families) for phase in ("before", "after"))
    ends, first, last = intervals(after), before.summary(), after.summary()
    metrics = {
        name: {
            "meaning": meaning,
            "before": first.get(name),
            "after": last[name],
            **({"low": ends[name].low, "high": ends[name].high} if name in ends else {}),
        }
        for family in families
        for name, meaning in family.metrics.items()
        if last.get(name) is not None
    }
    return {"facts": len(after.records), "metrics": metrics, "intervals_over": after.resampling.over}


def past_scores(
    run: PastRun, families: Sequence[MetricFamily], facts: Collection[tuple[str, str]], batch: int | None
) -> dict[str, Any]:
    """The scores that an earlier run gave an edit; empty if it gave none.

    Args:
        run: the earlier run.
        families: the metric families that it was scored with.
        facts: prompt and new object of the facts that the edit holds.
        batch: number of the batch that the edit writes; ``None`` if it writes all of them.
    """
    try:
        return record_scores(run.records(), families, batch)
    except InputError:  # Nothing was scored.
        pass
    try:
        answers = run.document(ANSWERS)
    except InputError:  # Nothing was asked either.
        return {}
    found = [one for one in answers if (one["prompt"], one["target_new"]) in facts]
    return answer_scores(found) if found else {}
