"""Stage ``abilities``: the answers of the unedited and the edited model to the examples of classification tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.rows import RowSeries, holders
from factsmith.tasks.abilities.answering import SCHEMA, WAYS, Way
from factsmith.tasks.abilities.measures import Ability, compared, measured
from factsmith.tasks.abilities.task import AbilityTask, Example
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.turns import on_shares
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["ANSWERS", "Abilities", "Asked", "abilities", "prediction_series"]

logger = logging.getLogger(__name__)

ANSWERS = "abilities.parquet"
"""The file with one row per (edit, task, way of answering, example)."""

_ROWS = "predictions.parquet"
_EXAMPLES_PER_ARTIFACT = 128


@dataclass(frozen=True)
class Asked:
    """What the models are asked.

    Attributes:
        tasks: the examples of each task.
        ways: names of the ways of answering.
    """

    tasks: Sequence[tuple[AbilityTask, Sequence[Example]]]
    ways: Sequence[str]

    def parts(self) -> list[tuple[AbilityTask, Sequence[Example], Way]]:
        """Every task with every way of answering."""
        return [(task, examples, WAYS[way]) for task, examples in self.tasks for way in self.ways]


@dataclass(frozen=True)
class Abilities:
    """The answers of a run and their metrics.

    Attributes:
        artifact: holds ``ANSWERS``.
        found: the metrics before and after the edit.
        along: the metrics by the number of edits of a sequence, 0 for the unedited model; empty if only the last edit
            was asked.
    """

    artifact: Artifact
    found: list[Ability]
    along: dict[str, dict[int, float]]


def prediction_series(model: Fingerprint, task: AbilityTask, way: Way, edit: str | None) -> Series:
    """The series of a task's answers under the weights of an edit, given by its digest, or of none."""
    parameters = {**way.parameters(task), **model.parameters}
    return Series("predictions", 1, parameters, {**model.inputs, **({"edit": edit} if edit else {})})


@stage("abilities")
def abilities(
    workspace: Workspace, model: Model, asked: Asked, edits: Sequence[Artifact], counts: Sequence[int] | None
) -> Outcome[Abilities]:
    """Ask the unedited model and each edited one for the label of every example.

    An answer is identified by the weights, the task, the way of answering and the prompt. What an earlier run has asked
    is not asked again. An example that does not fit the model is left out, counted and reported.

    Args:
        workspace: the run's workspace.
        model: the model.
        asked: the examples and the ways of answering.
        edits: the edits. Each makes a model of its own.
        counts: the number of facts that each edit of a sequence holds. The last edit is then the edited model. ``None``
            for edits of independent batches, over which the metrics are averaged.
    """
    weights = [None, *edits]
    total = len(weights) * sum(len(examples) * way.work(task) for task, examples, way in asked.parts())
    with progress("abilities", total) as advance:
        answered = [
            [_answers(workspace, model, task, way, edit, examples, advance) for edit in weights]
            for task, examples, way in asked.parts()
        ]
    recipe = Series("abilities", 1, {}).member(
        answers=[[one.series.digest for one in by_edit] for by_edit in answered],
        examples=[[[one.digest, one.label] for one in examples] for _, examples, _ in asked.parts()],
        counts=counts,
    )

    def build(draft: Draft) -> None:
        tables = []
        for (task, examples, way), by_edit in zip(asked.parts(), answered, strict=True):
            for number, one in enumerate(by_edit):
                draft.read_from(*one.sources)
                tables.append(_table(task, way, examples, one.rows, number, counts))
        save_table(draft.path / ANSWERS, pa.concat_tables(tables))
        draft.summary = {"answers": sum(map(len, tables))}

    artifact, table_built = workspace.store.get_or_build(recipe, build)
    found: list[Ability] = []
    along: dict[str, dict[int, float]] = {}
    skipped = 0
    for (task, examples, way), by_edit in zip(asked.parts(), answered, strict=True):
        fitting = [place for place, fits in enumerate(by_edit[0].rows["asked"].to_pylist()) if fits]
        skipped += _report_skipped(model, task, way, len(examples) - len(fitting))
        for answers in by_edit:
            _report_overflow(model, task, answers.rows)
        if not fitting:
            continue
        correct = [examples[place].label for place in fitting]
        before, *after = [[one.rows["answer"][place].as_py() for place in fitting] for one in by_edit]
        final = after[-1:] if counts is not None else after
        its_metrics = compared(task.title, way.name, len(task.labels), correct, before, final)
        found += its_metrics
        if counts is not None and len(counts) > 1:
            by_count = [measured(len(task.labels), correct, its) for its in (before, *after)]
            for one in its_metrics:
                along[one.name] = {n: its[one.metric] for n, its in zip((0, *counts), by_count, strict=True)}
    built = sum(one.built for by_edit in answered for one in by_edit)
    return Outcome(
        Abilities(artifact, found, along),
        artifact.address,
        table_built or built > 0,
        {"answers": artifact.summary["answers"], "answers_asked": built, "examples_skipped": skipped},
    )


@dataclass(frozen=True)
class _Answers:
    """Answers under some weights: rows of ``SCHEMA`` in the order of the examples, and the artifacts that hold them."""

    series: Series
    rows: pa.Table
    sources: list[Artifact]
    built: int


def _answers(
    workspace: Workspace,
    model: Model,
    task: AbilityTask,
    way: Way,
    edit: Artifact | None,
    examples: Sequence[Example],
    advance: Callable[[int], None],
) -> _Answers:
    """The answers to ``examples`` under the weights of ``edit``, or the unedited weights."""
    series = prediction_series(model.fingerprint, task, way, edit.digest if edit else None)
    prompts = {one.digest: one.prompt for one in examples}

    def build(draft: Draft, digests: list[str]) -> None:
        read = read_edit(edit)

        def answered(decoder: Decoder, digests: Sequence[str], advance: Callable[[int], None]) -> pa.Table:
            wanted = [prompts[digest] for digest in digests]
            with read.applied(decoder):
                found = way.answer(decoder, task, wanted, most_tokens=model.limits.most_tokens, advance=advance)
            rows = [{"example": digest, **one} for digest, one in zip(digests, found, strict=True)]
            return pa.Table.from_pylist(rows, schema=SCHEMA)

        tables = on_shares(model.replicas, answered, digests, advance, begin=workspace.limit_threads)
        if edit:
            draft.read_from(edit)
        save_table(draft.path / _ROWS, pa.concat_tables(tables))
        draft.summary = {"examples": len(digests)}
        draft.made = {**workspace.made, **model.made}

    found, built = RowSeries(workspace.store, series).get_or_build(list(prompts), build, at_once=_EXAMPLES_PER_ARTIFACT)
    sources = holders(found[digest] for digest in prompts)
    rows = pa.concat_tables([load_table(source.path / _ROWS) for source in sources])
    places = {digest: place for place, digest in enumerate(rows["example"].to_pylist())}
    return _Answers(series, rows.take(pa.array([places[one.digest] for one in examples], pa.int64())), sources, built)


def _table(
    task: AbilityTask,
    way: Way,
    examples: Sequence[Example],
    rows: pa.Table,
    number: int,
    counts: Sequence[int] | None,
) -> pa.Table:
    """Answers as a person reads them. Number 0 is the unedited model, the others are edits."""
    answers = [None if one is None else task.labels[one] for one in rows["answer"].to_pylist()]
    labels = [task.labels[one.label] for one in examples]
    columns = {
        "phase": ["after" if number else "before"] * len(examples),
        "edits": [counts[number - 1] if number and counts is not None else None] * len(examples),
        "batch": [number - 1 if number and counts is None else None] * len(examples),
        "task": [task.title] * len(examples),
        "way": [way.name] * len(examples),
        "prompt": [one.prompt for one in examples],
        "label": labels,
        "answer": answers,
        "correct": [
            one == label if asked else None
            for one, label, asked in zip(answers, labels, rows["asked"].to_pylist(), strict=True)
        ],
    }
    kinds = {"edits": pa.int64(), "batch": pa.int32(), "correct": pa.bool_()}
    arrays = {name: pa.array(column, kinds.get(name, pa.string())) for name, column in columns.items()}
    return pa.table({**arrays, "nll": rows["nll"], "text": rows["text"]})


def _report_skipped(model: Model, task: AbilityTask, way: Way, skipped: int) -> int:
    """Log and return how many examples do not fit the model."""
    if skipped:
        logger.warning(
            "%d examples of %s are too long for model %s (%d tokens at most) and are left out (%s)",
            skipped,
            task.title,
            model.name,
            model.context_length,
            way.name,
        )
    return skipped


def _report_overflow(model: Model, task: AbilityTask, rows: pa.Table) -> None:
    """Log how many prompts have likelihoods that are NaN."""
    if overflown := sum(any(map(math.isnan, nll)) for nll in rows["nll"].to_pylist() if nll is not None):
        logger.warning(
            "%d of %d examples of %s have likelihoods that are NaN: the model overflows in %s. They count as wrong; "
            "set model.dtype=float32",
            overflown,
            len(rows),
            task.title,
            model.dtype,
        )
