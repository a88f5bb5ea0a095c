"""What a family of metrics is: prompts it asks, a row for each, and what the rows come to."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.facts.record import Record

__all__ = ["ASKED", "Asked", "MetricFamily", "Passes", "load_families", "mean_by_kind", "mean_by_record"]

ASKED = [
    ("record", pa.string()),
    ("case_id", pa.int64()),
    ("kind", pa.string()),
    ("index", pa.int32()),
    ("prompt", pa.string()),
]
"""The columns that every family's rows begin with."""

Passes = Sequence[tuple[int, int]]
"""Sequences a model is fed: positions, and at how many of them scores of the next token are read."""


@dataclass(frozen=True)
class Asked:
    """One prompt of a record.

    Attributes:
        record: it belongs to.
        kind: of prompt.
        index: among those of its kind.
        prompt: its text.
    """

    record: Record
    kind: str
    index: int
    prompt: str

    @property
    def answer(self) -> str:
        """What is right behind the prompt: an answer of its own, else a target of the request.

        That is the new one, but for a neighbour, which must not move, the true one; empty if that is not known.
        """
        if own := self.record.answers.get(self.kind):
            return own[self.index]
        request = self.record.request
        return (request.target_true or "") if self.kind == "neighborhood" else request.target_new


class MetricFamily(ABC):
    """Metrics that are read off the same rows. Scores are kept by weights, record, prompts and ``version``.

    Attributes:
        name: of the family's file.
        version: raised when the same model and prompts would give other rows; older ones are then scored again.
        kinds: of prompts that are asked.
        parameters: constants that decide the rows, besides ``version``.
        schema: of the rows: ``ASKED``, then what was measured. The first measured column is null for a prompt that
            does not fit the model, which counts in no metric.
        metrics: by name, what each tells, in the order they are shown in.
        mean: the harmonic mean that the family is summed up in, and the metrics it is of.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    kinds: ClassVar[tuple[str, ...]]
    parameters: ClassVar[Mapping[str, Any]] = {}
    schema: ClassVar[pa.Schema]
    metrics: ClassVar[Mapping[str, str]]
    mean: ClassVar[tuple[str, tuple[str, ...]] | None] = None

    @abstractmethod
    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        """Rows of ``schema`` for every prompt that is asked of ``records``, in their order.

        Args:
            decoder: the model, edited or not.
            records: with their prompts.
            most_tokens: positions in one forward pass, at most.
            advance: told how much more of ``work`` is done.
        """

    @abstractmethod
    def by_record(self, rows: pa.Table) -> pa.Table:
        """``record``, ``metric``, ``value``: each record's mean of each metric that its rows can tell; 1 is all."""

    @abstractmethod
    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        """What scoring ``record`` feeds the model at most, to tell its cost beforehand."""

    def work(self, record: Record, prompts: int) -> int:
        """How much there is to do for so many prompts of ``record``, for bars."""
        return prompts

    def asked(self, records: Sequence[Record]) -> list[Asked]:
        """The prompts that are asked of ``records``, in the order of the rows."""
        return [
            Asked(record, kind, index, prompt)
            for record in records
            for kind in self.kinds
            for index, prompt in enumerate(record.prompts.get(kind, ()))
        ]

    def table(self, asked: Sequence[Asked], measured: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Rows of ``schema``: what was asked, and what was measured of each."""
        digests = {id(one.record): one.record for one in asked}
        names = {place: record.digest(self.kinds) for place, record in digests.items()}
        rows = [
            {
                "record": names[id(one.record)],
                "case_id": one.record.request.case_id,
                "kind": one.kind,
                "index": one.index,
                "prompt": one.prompt,
                **found,
            }
            for one, found in zip(asked, measured, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def skipped(self, rows: pa.Table) -> int:
        """How many prompts were not scored, because they do not fit the model."""
        return int(rows.column(len(ASKED)).null_count)


def mean_by_record(rows: pa.Table, values: Mapping[str, pa.ChunkedArray]) -> Iterator[pa.Table]:
    """Tables of ``record``, ``metric``, ``value``: a record's mean of each column of ``values`` over its ``rows``."""
    for metric, column in values.items():
        table = pa.table({"record": rows["record"], "value": pc.cast(column, pa.float64())}).drop_null()
        within = table.group_by("record", use_threads=False).aggregate([("value", "mean")])
        name = pa.array([metric] * len(within), pa.string())
        yield pa.table({"record": within["record"], "metric": name, "value": within["value_mean"]})


def mean_by_kind(
    rows: pa.Table, metric_of: Mapping[str, str], value: Callable[[pa.Table], pa.ChunkedArray]
) -> pa.Table:
    """``MetricFamily.by_record`` where each kind of prompts tells one metric, of the same ``value`` of its rows."""
    tables: list[pa.Table] = []
    for kind, metric in metric_of.items():
        of_kind = rows.filter(pc.equal(rows["kind"], kind))
        tables += mean_by_record(of_kind, {metric: value(of_kind)})
    return pa.concat_tables(tables)


@cache
def _families() -> dict[str, MetricFamily]:
    from factsmith.tasks.evaluation import metrics

    names = [module.name for module in pkgutil.iter_modules(metrics.__path__)]
    found = [importlib.import_module(f"{metrics.__name__}.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


def load_families(names: Sequence[str] | None = None) -> list[MetricFamily]:
    """Families by name, each once, in the order given; all there are if none is given.

    Raises:
        InputError: there is no family of a name.
    """
    known = _families()
    for name in names or ():
        if name not in known:
            raise InputError(f"There is no metric {name!r}.", remedy=closest(name, known))
    return [known[name] for name in dict.fromkeys(names if names is not None else known)]
