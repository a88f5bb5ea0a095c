"""Curves of a sequence: what they are called in reports and MLflow, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.tasks.evaluation.trajectory_stage import FIRST

__all__ = ["COLLAPSE", "FIRST_FACTS", "PERPLEXITY", "SO_FAR", "Curves", "collapse", "evenly"]

Curves = dict[str, dict[int, float]]
"""By name, values by number of edits."""

SO_FAR = "sequence/{}"
"""A metric of all facts written so far."""

FIRST_FACTS = f"sequence/first_{FIRST}/{{}}"
"""The same of the first ones written."""

PERPLEXITY = "sequence/perplexity"

COLLAPSE = 10.0
"""Times the unedited model's perplexity of held-out text from which on a model counts as collapsed."""


def collapse(scores: Curves) -> int | None:
    """The number of edits after which text was first found to be ``COLLAPSE`` times as perplexing as before them all.

    ``None`` if it never was, or if there was no text.
    """
    points = scores.get(PERPLEXITY, {})
    return next((edits for edits, value in points.items() if not value < COLLAPSE * points[0]), None)


def evenly(counts: Sequence[int], most: int) -> list[int]:
    """``counts`` in their order, the last one and others evenly spread before it, ``most`` at most."""
    return list(counts[:: min(-1, -len(counts) // most)][::-1])
