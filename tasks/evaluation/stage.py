"""Stage ``evaluation``: every prompt of every record, before and after its batch is written."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_table, save_json, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.rows import RowSeries, holders
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.engine.workers_stage import Worker, workers
from factsmith.tasks.evaluation.family import MetricFamily, load_families
from factsmith.tasks.evaluation.summary import PHASES, record_values
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.facts.record import Record
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.turns import on_shares
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.tracking.runs import RECORDS

__all__ = ["RecordScores", "Scores", "evaluation", "prompt_table", "score_records", "score_series", "values_by_fact"]

logger = logging.getLogger(__name__)

_ROWS = "scores.parquet"
_RECORDS_PER_ARTIFACT = 256


def prompt_table(family: str) -> str:
    """The file of a metric family with one row per (phase, batch, record, kind of prompt, prompt)."""
    return f"{family}.parquet"


@dataclass(frozen=True)
class Scores:
    """The tables of an evaluation and their summary.

    Attributes:
        artifact: the artifact that holds the tables.
        before: metrics of the unedited model, in percent; ``None`` for a metric that no record has.
        after: the same of the edited model.
    """

    artifact: Artifact
    before: dict[str, float | None]
    after: dict[str, float | None]


def score_series(
    model: Fingerprint, tokenizer: PreTrainedTokenizerFast, family: MetricFamily, edit: str | None
) -> Series:
    """The series of all scores of a metric family under the weights of an edit, given by its digest, or of none."""
    parameters = {"metric": family.name, "version": family.version, **family.recipe(tokenizer), **model.parameters}
    return Series("scores", 2, parameters, {**model.inputs, **({"edit": edit} if edit else {})})


@stage("evaluation")
def evaluation(
    workspace: Workspace,
    model: Model,
    families: Sequence[MetricFamily],
    batches: FactBatches,
    edits: Sequence[Artifact],
) -> Outcome[Scores]:
    """Score the unedited model on all records, and each edit on the records that it writes.

    A score is identified by the weights, the record, its prompts and the version of the metric family. What an earlier
    run has scored is not scored again. A prompt that is too long for the model is skipped, counted and reported.

    Args:
        workspace: the run's workspace.
        model: the model.
        families: the metric families.
        batches: the records.
        edits: the final edits, in the order of ``batches.written``.
    """
    records = batches.records
    total = 2 * sum(family.work(one.record, 1) for family in families for one in family.asked(records))
    with progress("evaluation", total) as advance:
        written = zip(edits, batches.written, strict=True)
        shared = _share(workspace, model, families, [(None, records), *written], advance)
        scored = {
            family.name: [
                score_records(workspace, model, family, None, records, advance),
                *(
                    score_records(workspace, model, family, artifact, batch, advance)
                    for artifact, batch in zip(edits, batches.written, strict=True)
                ),
            ]
            for family in families
        }
    recipe = Series("evaluation", 2, {}).member(
        phases={name: [one.series.digest for one in by_batch] for name, by_batch in scored.items()},
        batches=[[record.fact for record in batch] for batch in batches.written],
        records={family.name: [record.digest(family.kinds) for record in records] for family in families},
    )

    def build(draft: Draft) -> None:
        by_record = []
        for family in families:
            tables = []
            unedited = scored[family.name][0].rows
            for number, one in enumerate(scored[family.name]):
                draft.read_from(*one.sources)
                tables.append(_with_phase(one.rows, number))
                counted = family.counted(one.rows, unedited)
                by_record.append(_with_phase(values_by_fact(family, counted, one.records), number))
            save_table(draft.path / prompt_table(family.name), pa.concat_tables(tables))
        table = pa.concat_tables(by_record)
        save_table(draft.path / RECORDS, table)
        summary = {phase: record_values(table, phase, families).summary() for phase in PHASES}
        save_json(draft.path / "summary.json", summary)
        rows = sum(len(one.rows) for by_batch in scored.values() for one in by_batch)
        draft.summary = {"records": len(records), "rows": rows, **summary}

    artifact, table_built = workspace.store.get_or_build(recipe, build)
    newly_scored = shared + sum(one.built for by_batch in scored.values() for one in by_batch)
    skipped = sum(_report_skipped(model, family, scored[family.name][0].rows) for family in families)
    for family in families:
        for one in scored[family.name]:
            _report_overflow(model, family, one.rows)
    return Outcome(
        Scores(artifact, artifact.summary["before"], artifact.summary["after"]),
        artifact.address,
        table_built or newly_scored > 0,
        {
            "records": len(records),
            "records_scored": newly_scored,
            "rows": artifact.summary["rows"],
            "prompts_skipped": skipped,
        },
    )


def _report_skipped(model: Model, family: MetricFamily, rows: pa.Table) -> int:
    """Log and return how many prompts were skipped."""
    if skipped := family.skipped(rows):
        logger.warning(
            "%d of %d prompts are too long for model %s (%d tokens at most) and are not scored (%s)",
            skipped,
            len(rows),
            model.name,
            model.context_length,
            family.name,
        )
    return skipped


def _report_overflow(model: Model, family: MetricFamily, rows: pa.Table) -> None:
    """Log how many prompts have scores that are NaN."""
    is_nan = [pc.is_nan(rows[field.name]).fill_null(False) for field in rows.schema if pa.types.is_floating(field.type)]
    overflown = pc.sum(functools.reduce(pc.or_, is_nan)).as_py() if is_nan else 0
    if overflown:
        logger.warning(
            "%d of %d prompts have scores that are NaN: the model overflows in %s. They count as wrong in shares and "
            "are left out of magnitudes (%s); set model.dtype=float32",
            overflown,
            len(rows),
            model.dtype,
            family.name,
        )


@dataclass(frozen=True)
class RecordScores:
    """Scores of some records under some weights.

    Attributes:
        series: the series of the weights and the metric family.
        records: the records.
        rows: rows of the family's schema, in the order of the records.
        sources: the artifacts that hold the rows.
        built: number of records that had to be scored.
    """

    series: Series
    records: Sequence[Record]
    rows: pa.Table
    sources: list[Artifact]
    built: int


def score_records(
    workspace: Workspace,
    model: Model,
    family: MetricFamily,
    edit: Artifact | None,
    records: Sequence[Record],
    advance: Callable[[int], None],
) -> RecordScores:
    """Scores of ``records`` under the weights of ``edit``, or the unedited weights."""
    series = score_series(model.fingerprint, model.tokenizer, family, edit.digest if edit else None)
    by_digest = {record.digest(family.kinds): record for record in records}

    def build(draft: Draft, digests: list[str]) -> None:
        _score(draft, workspace, model, family, edit, [by_digest[digest] for digest in digests], advance)

    found, built = RowSeries(workspace.store, series).get_or_build(
        list(by_digest), build, at_once=_RECORDS_PER_ARTIFACT
    )
    sources = holders(found[digest] for digest in by_digest)
    rows = pa.concat_tables([load_table(source.path / _ROWS) for source in sources])
    order = {digest: place for place, digest in enumerate(by_digest)}
    wanted = rows.filter(pc.is_in(rows["record"], value_set=pa.array(list(by_digest))))
    places = pa.array([order[digest] for digest in wanted["record"].to_pylist()], pa.int64())
    wanted = wanted.take(pc.sort_indices(places))
    return RecordScores(series, records, wanted, sources, built)


def _score(
    draft: Draft,
    workspace: Workspace,
    model: Model,
    family: MetricFamily,
    edit: Artifact | None,
    records: Sequence[Record],
    advance: Callable[[int], None],
) -> None:
    """Write the scores of ``records`` into ``draft``."""
    read = read_edit(edit)

    def scored(decoder: Decoder, records: Sequence[Record], advance: Callable[[int], None]) -> pa.Table:
        with read.applied(decoder):
            return family.score(decoder, records, most_tokens=model.limits.most_tokens, advance=advance)

    table = pa.concat_tables(on_shares(model.replicas, scored, records, advance, begin=workspace.limit_threads))
    if edit:
        draft.read_from(edit)
    save_table(draft.path / _ROWS, table)
    draft.summary = {"records": len(records), "rows": len(table)}
    draft.made = {**workspace.made, **model.made}


@dataclass(frozen=True)
class _Share:
    """A worker's share: some records, and the weights that they are scored under."""

    series: Series
    family: str
    edit: Artifact | None
    records: Sequence[Record]


def _share(
    workspace: Workspace,
    model: Model,
    families: Sequence[MetricFamily],
    wanted: Sequence[tuple[Artifact | None, Sequence[Record]]],
    advance: Callable[[int], None],
) -> int:
    """Have workers, if there are any, score the records that lack scores. Returns the number of records scored."""
    if workspace.runtime.engine == "local":
        return 0
    size = workspace.runtime.ray.task_size or _RECORDS_PER_ARTIFACT
    shares = []
    for family in families:
        for edit, records in wanted:
            series = score_series(model.fingerprint, model.tokenizer, family, edit.digest if edit else None)
            by_digest = {record.digest(family.kinds): record for record in records}
            missing = RowSeries(workspace.store, series).missing(list(by_digest))
            shares += [
                _Share(series, family.name, edit, [by_digest[digest] for digest in missing[first : first + size]])
                for first in range(0, len(missing), size)
            ]
    pool = workers(workspace, model) if shares else None
    return sum(pool.each(_score_share, shares, advance)) if pool is not None else 0


def _score_share(worker: Worker, share: _Share, advance: Callable[[int], None]) -> int:
    """Score records in the process of a worker. Returns their number."""
    (family,) = load_families([share.family])

    def build(draft: Draft) -> None:
        _score(draft, worker.workspace, worker.model, family, share.edit, share.records, advance)

    recipe = share.series.member(rows=[record.digest(family.kinds) for record in share.records])
    worker.workspace.store.get_or_build(recipe, build)
    return len(share.records)


def _with_phase(rows: pa.Table, number: int) -> pa.Table:
    """``rows`` with columns for the phase and the batch. Number 0 is the unedited model, the others are batches."""
    phase = pa.array([PHASES[number > 0]] * len(rows), pa.string())
    batch = pa.array([number - 1 if number else None] * len(rows), pa.int32())
    return rows.add_column(0, "batch", batch).add_column(0, "phase", phase)


def values_by_fact(family: MetricFamily, rows: pa.Table, records: Sequence[Record]) -> pa.Table:
    """The metrics of ``records``, from their rows: ``record``, ``case_id``, ``metric``, ``value``.

    ``record`` is the digest of the fact. It does not depend on the prompts, so it joins runs and families.
    """
    by_digest = {record.digest(family.kinds): record for record in records}
    values = family.by_record(rows.filter(pc.is_in(rows["record"], value_set=pa.array(list(by_digest), pa.string()))))
    asked = [by_digest[digest] for digest in values["record"].to_pylist()]
    facts = pa.array([record.fact for record in asked], pa.string())
    cases = pa.array([record.request.case_id for record in asked], pa.int64())
    return values.set_column(0, "record", facts).add_column(1, "case_id", cases)
