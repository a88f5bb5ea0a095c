"""Stage ``evaluation``: every prompt of every record, before and after its batch was written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.formats import load_table, save_json, save_table
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.rows import RowSeries, holders
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.edit.batch import applied
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.summary import PHASES, record_values
from factsmith.tasks.facts.record import Record
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.tracking.runs import RECORDS

__all__ = ["Phase", "Scores", "evaluation", "prompt_table", "score_records", "score_series"]

logger = logging.getLogger(__name__)

_ROWS = "scores.parquet"
_RECORDS_AT_ONCE = 256


def prompt_table(family: str) -> str:
    """The file with one row a (phase, batch, record, kind of prompt, prompt) of a family of metrics."""
    return f"{family}.parquet"


@dataclass(frozen=True)
class Scores:
    """The tables of an evaluation, and what they come to.

    Attributes:
        artifact: that holds the tables.
        before: metrics of the unedited model, in percent; ``None`` where the records cannot tell.
        after: metrics of the edited one.
    """

    artifact: Artifact
    before: dict[str, float | None]
    after: dict[str, float | None]


def score_series(model: ModelName, family: MetricFamily, edit: str | None) -> Series:
    """Scores of all records on a family of metrics, under the weights of an edit (its digest), or of no edit."""
    parameters = {"metric": family.name, "version": family.version, **family.parameters, **model.parameters}
    return Series("scores", 2, parameters, {**model.inputs, **({"edit": edit} if edit else {})})


@stage("evaluation")
def evaluation(bench: Bench, model: ModelName, edits: Sequence[Artifact]) -> Outcome[Scores]:
    """Score the unedited model on all records, and each edit on the records it holds.

    A score is kept by (weights, record, prompts of a family, version of its metrics): what an earlier run has scored
    is not run again. A prompt that does not fit the model is skipped, counted and told of.
    """
    families = bench.families
    everything = [record for batch in bench.written for record in batch]
    total = 2 * sum(family.work(one.record, 1) for family in families for one in family.asked(everything))
    with work("evaluation", total) as advance:
        phases = {
            family.name: [
                score_records(bench, model, family, None, everything, advance),
                *(
                    score_records(bench, model, family, artifact, batch, advance)
                    for artifact, batch in zip(edits, bench.written, strict=True)
                ),
            ]
            for family in families
        }
    recipe = Series("evaluation", 2, {}).member(
        phases={name: [phase.series.digest for phase in by_batch] for name, by_batch in phases.items()},
        batches=[[digest_of(record.request.fact) for record in batch] for batch in bench.written],
        records={family.name: [record.digest(family.kinds) for record in everything] for family in families},
    )

    def build(draft: Draft) -> None:
        by_record = []
        for family in families:
            tables = []
            for number, phase in enumerate(phases[family.name]):
                draft.read_from(*phase.sources)
                tables.append(_marked(phase.rows, number))
                by_record.append(_marked(values_by_fact(family, phase.rows, phase.records), number))
            save_table(draft.path / prompt_table(family.name), pa.concat_tables(tables))
        table = pa.concat_tables(by_record)
        save_table(draft.path / RECORDS, table)
        summary = {phase: record_values(table, phase, families).summary() for phase in PHASES}
        save_json(draft.path / "summary.json", summary)
        rows = sum(len(phase.rows) for by_batch in phases.values() for phase in by_batch)
        draft.summary = {"records": len(everything), "rows": rows, **summary}

    artifact, table_built = bench.store.get_or_build(recipe, build)
    scored = sum(phase.built for by_batch in phases.values() for phase in by_batch)
    skipped = 0
    for family in families:
        before = phases[family.name][0].rows
        if missed := family.skipped(before):
            skipped += missed
            logger.warning(
                "%d of %d prompts do not fit model %s (%d tokens at most): not scored (%s)",
                missed,
                len(before),
                bench.settings.model.name,
                bench.checkpoint.context_length,
                family.name,
            )
    scores = Scores(artifact, artifact.summary["before"], artifact.summary["after"])
    return Outcome(
        scores,
        artifact.address,
        table_built or scored > 0,
        {
            "records": len(everything),
            "records_scored": scored,
            "rows": artifact.summary["rows"],
            "prompts_skipped": skipped,
        },
    )


@dataclass(frozen=True)
class Phase:
    """Rows of some records under some weights.

    Attributes:
        series: the weights and the metrics.
        records: that were scored.
        rows: of the family's schema, in the order of the records.
        sources: artifacts that hold the rows.
        built: records that had to be scored.
    """

    series: Series
    records: Sequence[Record]
    rows: pa.Table
    sources: list[Artifact]
    built: int


def score_records(
    bench: Bench,
    model: ModelName,
    family: MetricFamily,
    edit: Artifact | None,
    records: Sequence[Record],
    advance: Callable[[int], None],
) -> Phase:
    """Rows of ``records`` on a family of metrics, under the weights of ``edit`` or the unedited ones."""
    series = score_series(model, family, edit.digest if edit else None)
    by_digest = {record.digest(family.kinds): record for record in records}

    def build(draft: Draft, digests: list[str]) -> None:
        weights = applied(bench.decoder, read_deltas(edit)) if edit else contextlib.nullcontext()
        with weights:
            table = family.score(
                bench.decoder,
                [by_digest[digest] for digest in digests],
                most_tokens=bench.settings.runtime.tokens_per_pass,
                advance=advance,
            )
        if edit:
            draft.read_from(edit)
        save_table(draft.path / _ROWS, table)
        draft.summary = {"records": len(digests), "rows": len(table)}
        draft.made = bench.made

    found, built = RowSeries(bench.store, series).get_or_build(list(by_digest), build, at_once=_RECORDS_AT_ONCE)
    sources = holders(found[digest] for digest in by_digest)
    rows = pa.concat_tables([load_table(source.path / _ROWS) for source in sources])
    order = {digest: place for place, digest in enumerate(by_digest)}
    wanted = rows.filter(pc.is_in(rows["record"], value_set=pa.array(list(by_digest))))
    places = pa.array([order[digest] for digest in wanted["record"].to_pylist()], pa.int64())
    wanted = wanted.take(pc.sort_indices(places))
    return Phase(series, records, wanted, sources, built)


def _marked(rows: pa.Table, number: int) -> pa.Table:
    """``rows`` with their phase and batch before them; the phase of number 0 is the unedited model's."""
    phase = pa.array([PHASES[number > 0]] * len(rows), pa.string())
    batch = pa.array([number - 1 if number else None] * len(rows), pa.int32())
    return rows.add_column(0, "batch", batch).add_column(0, "phase", phase)


def values_by_fact(family: MetricFamily, rows: pa.Table, records: Sequence[Record]) -> pa.Table:
    """Each record's metrics, of the rows of ``records`` alone: ``record``, ``case_id``, ``metric``, ``value``.

    ``record`` is the fact's digest, the same whatever prompts were asked: what runs and families are joined by.
    """
    requests = {record.digest(family.kinds): record.request for record in records}
    values = family.by_record(rows.filter(pc.is_in(rows["record"], value_set=pa.array(list(requests), pa.string()))))
    asked = [requests[digest] for digest in values["record"].to_pylist()]
    facts = pa.array([digest_of(request.fact) for request in asked], pa.string())
    cases = pa.array([request.case_id for request in asked], pa.int64())
    return values.set_column(0, "record", facts).add_column(1, "case_id", cases)
