"""The number of random examples: the same ones every time, or with ``FACTSMITH_FUZZ=N`` N times as many new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FACTSMITH_FUZZ", "0"))


def examples(number: int) -> settings:
    """Settings for a test of ``number`` examples."""
    return settings(
        max_examples=number * max(1, TIMES),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
