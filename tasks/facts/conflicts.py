"""Contradictions: records that ask for different objects of the same prompt or relation of a subject."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.texts import appearance

__all__ = ["keep_first", "refuse_conflicts"]

logger = logging.getLogger(__name__)


def refuse_conflicts(records: Sequence[Record], path: Path) -> None:
    """Check that no two records contradict each other.

    Raises:
        InputError: two records contradict each other. The message names both.
    """
    for record, first in _with_earlier(records):
        if first is not None and not _same(first.request, record.request):
            one, other = first.request, record.request
            asked = "" if one.prompt == other.prompt else f"{other.prompt!r}: "
            raise InputError(
                f"Records {first.place} and {record.place} of {path} (counted from 0) contradict each other.",
                got=f"{one.prompt!r}: {one.target_new!r} and {asked}{other.target_new!r}",
                expected="one target for one subject and prompt, and for one subject and relation",
                remedy="keep one of them",
            )


def keep_first(records: Sequence[Record]) -> list[Record]:
    """The records without those that contradict or repeat an earlier kept one. Logs how many were dropped.

    Two records contradict each other if they ask for different objects of the same subject, either with the same prompt
    or in the same relation with any prompt. multi-CounterFact contains no such records (Meng et al. 2022b). Texts
    that look the same are the same here, whatever characters they are made of. The same object with another prompt is
    neither a contradiction nor a repetition.
    """
    kept = [record for record, first in _with_earlier(records) if first is None]
    if dropped := len(records) - len(kept):
        logger.warning(
            "dropped %d of %d records that repeat an earlier record, or ask for another object of the same subject and "
            "prompt or relation",
            dropped,
            len(records),
        )
    return kept


def _with_earlier(records: Sequence[Record]) -> Iterator[tuple[Record, Record | None]]:
    """Each record and the earlier record that it repeats or contradicts, if there is one.

    Records that themselves repeat or contradict an earlier one are not compared with.
    """
    by_prompt: dict[tuple[str, str], Record] = {}
    by_relation: dict[tuple[str, str], Record] = {}
    for record in records:
        subject, prompt = appearance(record.request.subject), appearance(record.request.prompt)
        first = by_prompt.get((subject, prompt))
        if first is None and record.relation is not None:
            earlier = by_relation.setdefault((subject, record.relation), record)
            first = None if _same(earlier.request, record.request) else earlier
        if first is None:
            by_prompt[subject, prompt] = record
        yield record, first


def _same(one: EditRequest, other: EditRequest) -> bool:
    """Whether both ask for the same object."""
    return appearance(one.target_new) == appearance(other.target_new)
