"""Metric families: the prompts that they ask, the rows that they measure, and the metrics that the rows give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.facts.record import Record
from factsmith.tasks.pipeline.parts import load_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["ASKED", "Asked", "MetricFamily", "Passes", "load_families", "mean_by_kind", "mean_by_record"]

ASKED = [
    ("record", pa.string()),
    ("case_id", pa.int64()),
    ("kind", pa.string()),
    ("index", pa.int32()),
    ("prompt", pa.string()),
]
"""The first columns of every family's rows."""

Passes = Sequence[tuple[int, int]]
"""For each sequence that a model is fed, its positions, and the number of positions where next tokens are scored."""


@dataclass(frozen=True)
class Asked:
    """One prompt of a record.

    Attributes:
        record: record that the prompt belongs to.
        kind: kind of prompt.
        index: place among the record's prompts of this kind.
        prompt: text of the prompt.
    """

    record: Record
    kind: str
    index: int
    prompt: str

    @property
    def answer(self) -> str:
        """The correct continuation of the prompt: its own answer if it has one, otherwise a target of the request.

        The target is the new object. For a neighbourhood prompt, whose answer must not change, it is the true object,
        or empty if that is not known.
        """
        if own := self.record.answers.get(self.kind):
            return own[self.index]
        request = self.record.request
        return (request.target_true or "") if self.kind == "neighborhood" else request.target_new


class MetricFamily(ABC):
    """Metrics that are computed from the same rows.

    Scores are stored by weights, record, prompts and ``version``.

    Attributes:
        name: name of the family, which also names its table of prompts.
        version: must be raised when the same model and prompts would give other rows. Older rows are then scored again.
        kinds: kinds of prompts that are asked.
        parameters: constants that determine the rows, besides ``version``.
        schema: schema of the rows: ``ASKED``, then the measured columns. The first measured column is null for a prompt
            that does not fit the model. Such a prompt counts in no metric.
        metrics: description of each metric, in the order in which they are shown.
        mean: name of the harmonic mean that summarises the family, and its metrics; ``None`` for a family without one.
        text: the column of the rows with what the model wrote; ``None`` if it writes nothing. A column ``correct`` then
            says whether that is right, if there is one.
        efficacy: metrics that say whether a fact holds: they are 1 if it does. The first that a fact has counts.
        conditional: whether the unedited model decides which rows count (``counted``).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    kinds: ClassVar[tuple[str, ...]]
    parameters: ClassVar[Mapping[str, Any]] = {}
    schema: ClassVar[pa.Schema]
    metrics: ClassVar[Mapping[str, str]]
    mean: ClassVar[tuple[str, tuple[str, ...]] | None] = None
    efficacy: ClassVar[tuple[str, ...]] = ()
    text: ClassVar[str | None] = None
    conditional: ClassVar[bool] = False

    @abstractmethod
    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        """Score every prompt that is asked of ``records``.

        Args:
            decoder: the model, edited or not.
            records: records with their prompts.
            most_tokens: most positions in one forward pass.
            advance: called with the amount of ``work`` just finished.

        Returns:
            Rows of ``schema``, in the order of ``asked``.
        """

    def recipe(self, tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Any]:
        """Everything besides model, records and ``version`` that determines the rows."""
        return self.parameters

    def check(self, tokenizer: PreTrainedTokenizerFast, records: Sequence[Record]) -> None:
        """Check that the model and the records allow to compute the metrics at all.

        Raises:
            InputError: they do not.
        """

    def counted(self, rows: pa.Table, unedited: pa.Table) -> pa.Table:
        """The rows that count, given those of the unedited model for the same records; all, if not overridden."""
        return rows

    @abstractmethod
    def by_record(self, rows: pa.Table) -> pa.Table:
        """A table of ``record``, ``metric``, ``value``: each record's mean of each metric that its rows give.

        Values are fractions: 1 is 100 percent.
        """

    @abstractmethod
    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        """An upper bound of what scoring ``record`` feeds the model, to estimate its cost."""

    def work(self, record: Record, prompts: int) -> int:
        """The amount of work for a number of ``prompts`` of ``record``, for progress bars."""
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
        """Rows of ``schema`` from the prompts that were asked, and from what was measured for each."""
        records = {id(one.record): one.record for one in asked}
        digests = {key: record.digest(self.kinds) for key, record in records.items()}
        rows = [
            {
                "record": digests[id(one.record)],
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
        """The number of prompts that were not scored because they do not fit the model."""
        return int(rows.column(len(ASKED)).null_count)


def mean_by_record(rows: pa.Table, values: Mapping[str, pa.ChunkedArray]) -> Iterator[pa.Table]:
    """Tables of ``record``, ``metric``, ``value``: each record's mean of each column of ``values`` over its rows."""
    for metric, column in values.items():
        table = pa.table({"record": rows["record"], "value": pc.cast(column, pa.float64())}).drop_null()
        within = table.group_by("record", use_threads=False).aggregate([("value", "mean")])
        name = pa.array([metric] * len(within), pa.string())
        yield pa.table({"record": within["record"], "metric": name, "value": within["value_mean"]})


def mean_by_kind(
    rows: pa.Table, metric_of: Mapping[str, str], value: Callable[[pa.Table], pa.ChunkedArray]
) -> pa.Table:
    """``MetricFamily.by_record`` for a family with one metric for each kind of prompt: the mean of ``value``.

    Args:
        rows: rows of the family.
        metric_of: metric of each kind of prompt.
        value: computes the value of each row.
    """
    tables: list[pa.Table] = []
    for kind, metric in metric_of.items():
        of_kind = rows.filter(pc.equal(rows["kind"], kind))
        tables += mean_by_record(of_kind, {metric: value(of_kind)})
    return pa.concat_tables(tables)


@cache
def _families() -> dict[str, MetricFamily]:
    from factsmith.tasks.evaluation import metrics

    return {module.FAMILY.name: module.FAMILY for module in load_parts(metrics.__name__)}


def load_families(names: Sequence[str] | None = None) -> list[MetricFamily]:
    """Load metric families by name, in the order given and without repeats; all of them if ``names`` is ``None``.

    Raises:
        InputError: there is no family with a given name.
    """
    known = _families()
    for name in names or ():
        if name not in known:
            raise InputError(f"There is no metric family {name!r}.", remedy=closest(name, known))
    return [known[name] for name in dict.fromkeys(names if names is not None else known)]
