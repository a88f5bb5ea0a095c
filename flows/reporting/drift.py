"""Drift in reports, in MLflow and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from factsmith.flows.reporting.curves import DRIFT
from factsmith.tasks.evaluation.held_out.drift import MEASURES
from factsmith.tasks.evaluation.held_out.drift_stage import Drift

__all__ = ["DriftMeasure", "drift_metrics", "drift_report", "drift_table"]


class DriftMeasure(BaseModel):
    """A measure of how far the predictions of held-out text have moved.

    Attributes:
        measure: its name.
        meaning: what it is, with its unit.
        before: its value for the unedited model; ``None`` for a measure that compares the two models.
        after: the mean over the edits that were measured; for a sequence, the value after its last edit.
        worst: the largest value of one of these edits.
        edits: number of these edits; 1 for a sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    meaning: str
    before: float | None
    after: float
    worst: float
    edits: int


def drift_report(drift: Sequence[Drift]) -> list[DriftMeasure]:
    """The mean and the worst of each measure."""
    return [
        DriftMeasure(
            measure=one.measure,
            meaning=MEASURES[one.measure],
            before=one.before,
            after=sum(one.by_edit) / len(one.by_edit),
            worst=max(one.by_edit),
            edits=len(one.by_edit),
        )
        for one in drift
    ]


def drift_metrics(measures: Iterable[DriftMeasure]) -> dict[str, float | None]:
    """The measures by their names in MLflow. The worst edit is left out if there is only one."""
    found: dict[str, float | None] = {}
    for one in measures:
        found[f"{DRIFT}{one.measure}"] = one.after
        found[f"drift/before/{one.measure}"] = one.before
        found[f"drift/worst/{one.measure}"] = one.worst if one.edits > 1 else None
    return found


def drift_table(measures: Sequence[DriftMeasure]) -> Table:
    """A table with one row per measure. The worst edit is left out if there is only one."""
    edits = measures[0].edits
    table = Table(
        title="drift: the prediction of text that is not about the facts",
        title_justify="left",
        caption=f"after: mean of the first {edits} edits; worst: the largest of them" if edits > 1 else None,
        caption_justify="left",
    )
    table.add_column("")
    for name in ("before", "after", *(["worst"] if edits > 1 else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("meaning")
    for one in measures:
        values = [one.before, one.after, *([one.worst] if edits > 1 else [])]
        table.add_row(one.measure, *("" if value is None else f"{value:.4g}" for value in values), one.meaning)
    return table
