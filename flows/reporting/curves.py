"""The curves of a sequence: their names in reports and MLflow, and the collapse that they show."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.tasks.evaluation.summary import FIRST

__all__ = [
    "ALL_FACTS",
    "COLLAPSE",
    "DRIFT",
    "FIRST_FACTS",
    "KL",
    "PERPLEXITY",
    "RELATIVE",
    "Curves",
    "collapse",
    "evenly",
]

Curves = dict[str, dict[int, float]]
"""Values by the name of a curve and the number of edits."""

ALL_FACTS = "sequence/{}"
"""The curve of a metric of all facts written so far."""

FIRST_FACTS = f"sequence/first_{FIRST}/{{}}"
"""The curve of a metric of the first facts that were written."""

PERPLEXITY = "sequence/perplexity"

KL = "sequence/KL"
"""The curve of the mean KL(unedited || edited) of next tokens of held-out text, in nats."""

DRIFT = "drift/after/"
"""What the name of a measure of drift starts with in MLflow, for the edited model."""

RELATIVE = "change/relative"
"""The beginning of the curves of the norm of all changes of a layer, divided by the norm of its weight."""

COLLAPSE = 10.0
"""A model has collapsed when the perplexity of held-out text is at least this many times the unedited model's."""


def collapse(curves: Curves) -> int | None:
    """The smallest scored number of edits after which the model has collapsed.

    ``None`` if it has not collapsed, or if perplexity was not measured.
    """
    points = curves.get(PERPLEXITY, {})
    return next((edits for edits, value in points.items() if not value < COLLAPSE * points[0]), None)


def evenly(counts: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ``counts``, in their order: the last one, and others evenly spread before it."""
    return list(counts[:: min(-1, -len(counts) // most)][::-1])
