"""The trajectory of a sequence in MLflow: curves with the number of edits as the step, tables and a figure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from factsmith.flows.reporting.curves import ALL_FACTS, FIRST_FACTS, RELATIVE, Curves, evenly
from factsmith.flows.reporting.figures import trajectory_figure
from factsmith.tasks.edit.sequence_shards_stage import FACTS, MEASURES
from factsmith.tasks.evaluation.summary import FIRST
from factsmith.tasks.evaluation.trajectory_stage import TRAJECTORY, Trajectory
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["log_trajectory", "measure_curves", "score_curves"]

_MOST_POINTS = 100
"""Most points of a curve with one point per batch. The table has all of them."""

_MEASURE_CURVES = {
    "step": "change/step",
    "total": "change/total",
    "relative": RELATIVE,
    "step_leading": "safety/step",
    "step_rest": "safety/step_rest",
    "total_leading": "safety/total",
    "total_rest": "safety/total_rest",
}
"""The curve of each column of the measures."""


def log_trajectory(tracker: Tracker, trajectory: Trajectory, means: Sequence[str]) -> Curves:
    """Log a sequence to its run.

    Args:
        tracker: the run's tracker.
        trajectory: the tables of the sequence.
        means: the scores that summarise the run's metric families.

    Returns:
        The curves of the scores, and of the relative change of each layer.
    """
    scores, measures = score_curves(trajectory.scores()), measure_curves(trajectory.measures(), trajectory.facts())
    thinned = {
        name: {edits: points[edits] for edits in evenly(list(points), _MOST_POINTS)}
        for name, points in measures.items()
    }
    tracker.curves(scores | thinned)
    tracker.file(trajectory.artifact.path / TRAJECTORY, "sequence", name="trajectory.parquet")
    for name in (MEASURES, FACTS):
        tracker.file(trajectory.edit.path / name, "sequence")
    tracker.figure(trajectory_figure(scores, measures, means), "sequence.png")
    return scores | {name: points for name, points in thinned.items() if name.startswith(RELATIVE)}


def score_curves(table: pa.Table) -> Curves:
    """``sequence/S`` of all edits so far, ``sequence/first_100/S``, and ``sequence/perplexity``."""
    curves: Curves = defaultdict(dict)
    for row in table.to_pylist():
        name = FIRST_FACTS if row["scope"] == f"first_{FIRST}" else ALL_FACTS
        curves[name.format(row["metric"])][row["edits"]] = row["value"]
    return dict(curves)


def measure_curves(measures: pa.Table, facts: pa.Table) -> Curves:
    """For every batch, ``safety/...`` and ``change/...`` of each layer, and the mean share of the residuals reached."""
    curves: Curves = defaultdict(dict)
    for row in measures.to_pylist():
        for column, name in _MEASURE_CURVES.items():
            if not math.isnan(row[column]):  # It is NaN if the method has no principal directions.
                curves[f"{name}/layer_{row['layer']}"][row["edits"]] = row[column]
    by_batch = facts.group_by("edits", use_threads=False).aggregate([("reached", "mean")])
    edits, reached = by_batch["edits"].to_pylist(), by_batch["reached_mean"].to_pylist()
    if None not in reached:  # An editor has no value vectors to reach.
        curves["sequence/reached"] = dict(zip(edits, reached, strict=True))
    return dict(curves)
