"""The number of random examples: few, always the same ones, or with ``FACTSMITH_FUZZ=N`` N times as many as stated."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FACTSMITH_FUZZ", "0"))


def examples(number: int) -> settings:
    """Settings for a test of ``number`` examples, of which half are enough by default."""
    return settings(
        max_examples=number * TIMES or max(10, number // 2),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
