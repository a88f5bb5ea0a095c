"""Two records that ask for different objects at one subject and prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.records.record import Record

__all__ = ["keep_first", "refuse_conflicts"]

logger = logging.getLogger(__name__)


def refuse_conflicts(records: Sequence[Record], path: Path) -> None:
    """
    Raises:
        InputError: two records contradict each other; names both.
    """
    seen: dict[tuple[str, str], Record] = {}
    for record in records:
        first = seen.setdefault(_key(record), record)
        if first.request.target_new != record.request.target_new:
            raise InputError(
                f"Records {first.place} and {record.place} of {path} (counted from 0) contradict each other.",
                got=f"{first.request.prompt!r}: {first.request.target_new!r} and {record.request.target_new!r}",
                expected="one target for one subject and prompt",
                remedy="keep the one that is true",
            )


def keep_first(records: Sequence[Record]) -> list[Record]:
    """The records without those that contradict or repeat an earlier one; says how many were dropped."""
    kept: dict[tuple[str, str], Record] = {}
    for record in records:
        kept.setdefault(_key(record), record)
    if dropped := len(records) - len(kept):
        logger.warning(
            "%d of %d records repeat or contradict an earlier one (same subject and prompt): dropped",
            dropped,
            len(records),
        )
    return list(kept.values())


def _key(record: Record) -> tuple[str, str]:
    return record.request.subject, record.request.prompt
