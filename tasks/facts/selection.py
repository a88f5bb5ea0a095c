"""Selection of the records to write, and their division into batches."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path
from types import ModuleType
from typing import Literal

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.conflicts import keep_first, keep_first_instances
from factsmith.tasks.facts.reading import read_json
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.pipeline.parts import load_part

__all__ = ["in_batches", "load_records", "scored_batches", "select_records"]

_SCORED = 10
"""Number of times that a sequence is scored, unless ``method.sequence.evaluate_at`` is set."""


def load_records(settings: DatasetSettings) -> list[Record]:
    """All records of the dataset, read by the module of its format.

    Raises:
        InputError: the format is not known, or the records cannot be read.
    """
    records: list[Record] = _format(settings).load(settings)
    return [replace(one, request=replace(one.request, separator=settings.separator)) for one in records]


def _format(settings: DatasetSettings) -> ModuleType:
    from factsmith.tasks.facts import datasets

    return load_part(datasets.__name__, settings.format, "dataset format")


def select_records(settings: DatasetSettings) -> list[Record]:
    """The records that the settings select.

    In this order, they are chosen by case id, freed of contradictions and repetitions, shuffled by seed, reduced to a
    split, and cut to the limit. Unless the format splits its records itself, a split takes every second record:
    ``tune`` the first of each pair, ``test`` the second. No record is in both. An instance of several records is
    chosen, moved and counted as one.

    Raises:
        InputError: the records cannot be read, a case does not exist, or the split has no records.
    """
    records = _instances(load_records(settings))
    if settings.cases is not None:
        records = _with_cases(records, settings)
    if any(len(instance) > 1 for instance in records):
        records = keep_first_instances(records)
    else:
        records = _instances(keep_first(_flat(records)))
    if settings.seed is not None:
        import torch  # Only here, so that commands that write nothing start quickly.

        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        records = [records[place] for place in order]
    if settings.split != "all" and not getattr(_format(settings), "LOADS_SPLITS", False):
        records = records[0 if settings.split == "tune" else 1 :: 2]
        if not records:
            raise InputError(f"dataset={settings.name} has too few records for dataset.split={settings.split}.")
    return _flat(records[: settings.limit])


def _instances(records: Sequence[Record]) -> list[Sequence[Record]]:
    """The records of each instance. A record without a group is one alone."""
    numbered = enumerate(records)
    by_group = groupby(numbered, lambda one: (one[1].group, one[0] if one[1].group is None else None))
    return [[record for _, record in part] for _, part in by_group]


def _flat(instances: Iterable[Sequence[Record]]) -> list[Record]:
    return [record for instance in instances for record in instance]


def in_batches(
    records: Sequence[Record], settings: DatasetSettings, batch_size: int | Literal["all"]
) -> list[Sequence[Record]]:
    """The records of each batch, of those that ``select_records`` has selected.

    ``batch_size`` counts instances, and no batch has a part of one.

    Raises:
        InputError: there are fewer than the batches need.
    """
    instances = _instances(records)
    size = len(instances) if batch_size == "all" else batch_size
    batches: list[Sequence[Record]] = [
        _flat(instances[first : first + size]) for first in range(0, len(instances), size)
    ]
    if settings.batches is None:
        return batches
    needed = size * settings.batches
    if len(instances) < needed:
        what = "records" if len(instances) == len(records) else "instances"
        raise InputError(
            f"dataset={settings.name} has {len(instances)} {what} for {settings.batches} batches of {size}.",
            expected=f"{needed} {what}",
            remedy="lower method.batch_size or dataset.batches, or raise dataset.limit",
        )
    return batches[: settings.batches]


def scored_batches(sizes: Sequence[int], counts: Sequence[int] | None) -> list[int]:
    """The numbers of batches after which a sequence is scored, ascending. They include the number of all batches.

    Args:
        sizes: number of facts in each batch.
        counts: numbers of facts, each of which stands for the end of the batch that contains it; ``None`` for
            ``_SCORED`` evenly spaced numbers.

    Raises:
        InputError: a count is not between 1 and the number of all facts.
    """
    ends = list(accumulate(sizes))
    if counts is None:
        counts = [-(-ends[-1] * number // _SCORED) for number in range(1, _SCORED + 1)]
    if not all(0 < count <= ends[-1] for count in counts):
        raise InputError(
            "method.sequence.evaluate_at contains numbers of facts that the sequence does not reach.",
            got=", ".join(map(str, counts)),
            expected=f"1 to {ends[-1]}",
        )
    return sorted({*(bisect_left(ends, count) + 1 for count in counts), len(sizes)})


def _with_cases(instances: list[Sequence[Record]], settings: DatasetSettings) -> list[Sequence[Record]]:
    cases = settings.cases
    where = "dataset.cases"
    if isinstance(cases, Path):
        where = str(cases)
        cases = read_json(cases.expanduser())
    if not isinstance(cases, list) or not all(type(case) is int for case in cases):
        raise InputError(f"{where} is not a JSON list of case ids.", expected="[1, 11, 14, ...]")
    by_case = {instance[0].request.case_id: instance for instance in instances}
    missing = [case for case in cases if case not in by_case]
    if missing:
        raise InputError(
            f"{where} asks for cases that dataset={settings.name} does not have.",
            got=f"{len(missing)} of {len(cases)} missing, such as {', '.join(map(str, missing[:5]))}",
        )
    counts = Counter(instance[0].request.case_id for instance in instances)
    for case in cases:
        if counts[case] > 1:
            raise InputError(
                f"{where} asks for case {case}, but {counts[case]} records of dataset={settings.name} have that id.",
                expected="a case id that one record has",
            )
    return [by_case[case] for case in dict.fromkeys(cases)]
