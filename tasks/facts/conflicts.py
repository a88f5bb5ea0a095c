"""Contradictions: records that ask for different objects of the same prompt or relation of a subject."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.texts import appearance

__all__ = ["keep_first", "keep_first_instances", "refuse_conflicts"]

logger = logging.getLogger(__name__)


def refuse_conflicts(records: Sequence[Record], path: Path | str) -> None:
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


def keep_first_instances(instances: Sequence[Sequence[Record]]) -> list[Sequence[Record]]:
    """The instances without those that contradict an earlier kept one. Logs how many were dropped.

    Instances may share a fact. It is then written once, if both are in the same batch.
    """
    seen, kept = _Seen(), []
    for instance in instances:
        earlier = [seen.earlier(record) for record in instance]
        if all(
            first is None or _same(first.request, record.request)
            for first, record in zip(earlier, instance, strict=True)
        ):
            kept.append(instance)
            for record in instance:
                seen.add(record)
    if dropped := len(instances) - len(kept):
        logger.warning(
            "dropped %d of %d instances that ask for another object than an earlier one, of the same subject and "
            "prompt or relation",
            dropped,
            len(instances),
        )
    return kept


def _with_earlier(records: Sequence[Record]) -> Iterator[tuple[Record, Record | None]]:
    """Each record and the earlier record that it repeats or contradicts, if there is one.

    Records that themselves repeat or contradict an earlier one are not compared with.
    """
    seen = _Seen()
    for record in records:
        first = seen.earlier(record)
        if first is None:
            seen.add(record)
        yield record, first


class _Seen:
    """Records that later ones are compared with."""

    def __init__(self) -> None:
        self._by_prompt: dict[tuple[str, str], Record] = {}
        self._by_relation: dict[tuple[str, str], Record] = {}

    def earlier(self, record: Record) -> Record | None:
        """The record that ``record`` repeats or contradicts, if there is one."""
        subject, prompt = _place(record)
        first = self._by_prompt.get((subject, prompt))
        if first is None and record.relation is not None:
            other = self._by_relation.get((subject, record.relation))
            first = None if other is None or _same(other.request, record.request) else other
        return first

    def add(self, record: Record) -> None:
        """Compare later records with ``record``, unless an earlier one has its place."""
        subject, prompt = _place(record)
        self._by_prompt.setdefault((subject, prompt), record)
        if record.relation is not None:
            self._by_relation.setdefault((subject, record.relation), record)


def _place(record: Record) -> tuple[str, str]:
    """Subject and prompt, as they look."""
    return appearance(record.request.subject), appearance(record.request.prompt)


def _same(one: EditRequest, other: EditRequest) -> bool:
    """Whether both ask for the same object."""
    return appearance(one.target_new) == appearance(other.target_new)
