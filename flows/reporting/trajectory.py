"""How a sequence went, as reports and MLflow show it: curves with the number of edits as step, and a figure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from factsmith.flows.reporting.curves import FIRST_FACTS, SO_FAR, Curves, evenly
from factsmith.flows.reporting.figures import sequence_course
from factsmith.tasks.edit.shards import FACTS, MEASURES
from factsmith.tasks.evaluation.trajectory_stage import COURSE, FIRST, Course
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["log_course", "measure_curves", "score_curves"]

_MOST_POINTS = 100
"""Of a curve of every batch in MLflow; the table has all of them."""


def log_course(tracker: Tracker, course: Course, means: Sequence[str]) -> Curves:
    """Log a sequence to its run; gives back the curves of its scores.

    Args:
        tracker: of the run.
        course: of the sequence.
        means: the scores that the run's families of metrics are summed up in.
    """
    scores, measures = score_curves(course.scores()), measure_curves(course.measures(), course.facts())
    thinned = {
        name: {edits: points[edits] for edits in evenly(list(points), _MOST_POINTS)}
        for name, points in measures.items()
    }
    tracker.curves(scores | thinned)
    for path in (course.artifact.path / COURSE, course.edit.path / MEASURES, course.edit.path / FACTS):
        tracker.file(path, "sequence")
    tracker.figure(sequence_course(scores, measures, means), "sequence.png")
    return scores


def score_curves(table: pa.Table) -> Curves:
    """``sequence/S`` of all edits so far, ``sequence/first_100/S``, and ``sequence/perplexity``."""
    curves: Curves = defaultdict(dict)
    for row in table.to_pylist():
        name = FIRST_FACTS if row["scope"] == f"first_{FIRST}" else SO_FAR
        curves[name.format(row["metric"])][row["edits"]] = row["value"]
    return dict(curves)


def measure_curves(measures: pa.Table, facts: pa.Table) -> Curves:
    """Of every batch ``safety/...`` and ``change/...`` of each layer, and the mean share of residuals reached."""
    curves: Curves = defaultdict(dict)
    for row in measures.to_pylist():
        for column, name in _CURVES.items():
            if not math.isnan(row[column]):  # as it is where no directions are known
                curves[f"{name}/layer_{row['layer']}"][row["edits"]] = row[column]
    within = facts.group_by("edits", use_threads=False).aggregate([("reached", "mean")])
    curves["sequence/reached"] = dict(zip(within["edits"].to_pylist(), within["reached_mean"].to_pylist(), strict=True))
    return dict(curves)


_CURVES = {
    "step": "change/step",
    "total": "change/total",
    "relative": "change/relative",
    "step_leading": "safety/step",
    "step_rest": "safety/step_rest",
    "total_leading": "safety/total",
    "total_rest": "safety/total_rest",
}
