"""Stage ``course``: how scores and weights go as the edits of a sequence add up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.corpus.stage import held_out_blocks, reached, token_series
from factsmith.tasks.edit.batch import applied
from factsmith.tasks.edit.shards import FACTS, MEASURES
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.evaluation.perplexity import block_nll, perplexity
from factsmith.tasks.evaluation.stage import score_records, values_by_fact
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.keys.reader import corpus_tokens, tokens_of_any_method
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["COURSE", "FIRST", "HELD_OUT", "Course", "course"]

logger = logging.getLogger(__name__)

COURSE = "course.parquet"
"""One row a (number of edits, scope, metric): ``all`` edits so far, the ``first_100``, or ``held_out`` text."""

FIRST = 100
"""Edits that are followed from the beginning to the end."""

HELD_OUT = 64
"""Blocks of corpus text, none of which C0 knows, whose perplexity is told."""

_SCHEMA = pa.schema([("edits", pa.int64()), ("scope", pa.string()), ("metric", pa.string()), ("value", pa.float64())])
_BLOCKS = "blocks.parquet"


@dataclass(frozen=True)
class Course:
    """The tables of a sequence.

    Attributes:
        artifact: that holds ``COURSE``.
        edit: the last one, that holds ``MEASURES`` and ``FACTS`` of every batch.
    """

    artifact: Artifact
    edit: Artifact

    def scores(self) -> pa.Table:
        """``edits``, ``scope``, ``metric``, ``value``."""
        return load_table(self.artifact.path / COURSE)

    def measures(self) -> pa.Table:
        """A row a (batch, layer)."""
        return load_table(self.edit.path / MEASURES)

    def facts(self) -> pa.Table:
        """A row a fact."""
        return load_table(self.edit.path / FACTS)


def perplexity_series(bench: Bench, model: ModelName, edit: str | None) -> Series:
    """NLL of blocks of text under the weights of an edit (its digest), or of no edit."""
    inputs = {**model.inputs, "tokens": token_series(bench, model).digest, **({"edit": edit} if edit else {})}
    return Series("perplexity", 1, model.parameters, inputs)


@stage("course")
def course(bench: Bench, model: ModelName, edits: Sequence[Artifact]) -> Outcome[Course]:
    """Score every edit of a sequence on the facts written so far, on the first of them, and on text.

    Args:
        bench: of the run.
        model: that is edited.
        edits: after each number of batches in ``bench.scored_batches``.
    """
    counts = [sum(map(len, bench.batches[:number])) for number in bench.scored_batches]
    everything = [record for batch in bench.batches for record in batch]
    prompts = sum(
        family.work(one.record, 1)
        for family in bench.families
        for count in counts
        for one in family.asked(everything[:count])
    )
    with work("course", prompts + HELD_OUT * (1 + len(edits))) as advance:
        # Behind what any method reads, so that all are told by the same text, if the corpus has as much.
        first = reached(bench, model, corpus_tokens(bench), tokens_of_any_method(bench))
        texts = [_text(bench, model, edit, first, advance) for edit in (None, *edits)]
        phases = {
            family.name: [
                score_records(bench, model, family, edit, everything[:count], advance)
                for edit, count in zip(edits, counts, strict=True)
            ]
            for family in bench.families
        }
    recipe = Series("course", 1, {"first": FIRST}).member(
        edits=dict(zip(map(str, counts), (edit.digest for edit in edits), strict=True)),
        scores={name: [phase.series.digest for phase in by_count] for name, by_count in phases.items()},
        records={family.name: [record.digest(family.kinds) for record in everything] for family in bench.families},
        texts=[text.digest for text, _ in texts],
    )

    def build(draft: Draft) -> None:
        rows = [
            {"edits": count, "scope": "held_out", "metric": "perplexity", "value": _perplexity(text)}
            for (text, _), count in zip(texts, (0, *counts), strict=True)
            if text.summary["blocks"]
        ]
        for place, count in enumerate(counts):
            for scope, most in (("all", count), (f"first_{FIRST}", FIRST)):
                at_count = [(family, phases[family.name][place]) for family in bench.families]
                parts = [values_by_fact(family, one.rows, one.records[:most]) for family, one in at_count]
                values = RecordValues.of(pa.concat_tables(parts), bench.families).summary()
                rows += [
                    {"edits": count, "scope": scope, "metric": metric, "value": value}
                    for metric, value in values.items()
                    if value is not None
                ]
        draft.read_from(*(text for text, _ in texts), *edits)
        for by_count in phases.values():
            for phase in by_count:
                draft.read_from(*phase.sources)
        save_table(draft.path / COURSE, pa.Table.from_pylist(rows, schema=_SCHEMA))
        draft.summary = {"edits": counts}

    if not texts[0][0].summary["blocks"]:
        logger.warning("corpus %s has no text left that C0 does not know: no perplexity", bench.settings.corpus.name)
    artifact, table_built = bench.store.get_or_build(recipe, build)
    scored = sum(phase.built for by_count in phases.values() for phase in by_count)
    built = table_built or scored > 0 or any(built for _, built in texts)
    return Outcome(
        Course(artifact, edits[-1]), artifact.address, built, {"times": len(counts), "records_scored": scored}
    )


def _text(
    bench: Bench, model: ModelName, edit: Artifact | None, first: int, advance: Callable[[int], None]
) -> tuple[Artifact, bool]:
    """NLL under some weights of the blocks behind ``first`` tokens, and whether they had to be run."""
    series = perplexity_series(bench, model, edit.digest if edit else None)

    def build(draft: Draft) -> None:
        shards, blocks = held_out_blocks(bench, model, first, HELD_OUT)
        with applied(bench.decoder, read_deltas(edit) if edit else {}):
            nll = block_nll(bench.decoder, blocks, most_tokens=bench.settings.runtime.tokens_per_pass, advance=advance)
        draft.read_from(*shards, *([edit] if edit else []))
        table = pa.table({"tokens": [len(block) - 1 for block in blocks], "nll": nll})
        save_table(draft.path / _BLOCKS, table)
        draft.summary = {"blocks": len(blocks), "first": first}
        draft.made = bench.made

    return bench.store.get_or_build(series.member(first=first, blocks=HELD_OUT), build)


def _perplexity(text: Artifact) -> float:
    table = load_table(text.path / _BLOCKS)
    return perplexity(table["nll"].to_pylist(), table["tokens"].to_pylist())
