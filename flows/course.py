"""How a sequence went, as reports and MLflow show it: curves with the number of edits as step, and a figure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from factsmith.flows.figures import sequence_course
from factsmith.tasks.course import COURSE, FIRST, Course
from factsmith.tasks.sequence import FACTS, MEASURES
from factsmith.tasks.tracking import Tracker

__all__ = [
    "COLLAPSE",
    "FIRST_FACTS",
    "PERPLEXITY",
    "SO_FAR",
    "Curves",
    "collapse",
    "log_course",
    "measure_curves",
    "score_curves",
]

Curves = dict[str, dict[int, float]]
"""By name, values by number of edits."""

SO_FAR = "sequence/{}"
"""A metric of all facts written so far."""

FIRST_FACTS = f"sequence/first_{FIRST}/{{}}"
"""The same of the first ones written."""

PERPLEXITY = "sequence/perplexity"

COLLAPSE = 10.0
"""Times the unedited model's perplexity of held-out text from which on a model counts as collapsed."""

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
    tracker.curves(scores | {name: _thinned(points) for name, points in measures.items()})
    for path in (course.artifact.path / COURSE, course.edit.path / MEASURES, course.edit.path / FACTS):
        tracker.file(path, "sequence")
    tracker.figure(sequence_course(scores, measures, means), "sequence.png")
    return scores


def collapse(scores: Curves) -> int | None:
    """The number of edits after which text was first found to be ``COLLAPSE`` times as perplexing as before them all.

    ``None`` if it never was, or if there was no text.
    """
    points = scores.get(PERPLEXITY, {})
    return next((edits for edits, value in points.items() if not value < COLLAPSE * points[0]), None)


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


def _thinned(points: Mapping[int, float]) -> dict[int, float]:
    """The last point and as many others, evenly spread, as MLflow need draw."""
    steps = list(points)
    stride = -(-len(steps) // _MOST_POINTS)
    return {step: points[step] for step in [*reversed(steps[::-1][::stride])]}
