"""Stage ``trajectory``: the scores and the perplexity of a sequence by the number of edits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series
from factsmith.tasks.corpus.budget import TokenBudget
from factsmith.tasks.corpus.corpus import Corpus
from factsmith.tasks.corpus.stage import held_out_blocks, last_reached, token_series
from factsmith.tasks.edit.sequence_shards_stage import FACTS, MEASURES
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.held_out.perplexity import block_nll, perplexity
from factsmith.tasks.evaluation.stage import RecordScores, score_records, values_by_fact
from factsmith.tasks.evaluation.summary import FIRST, RecordValues
from factsmith.tasks.facts.batches import FactBatches
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["HELD_OUT", "TRAJECTORY", "Trajectory", "perplexity_series", "trajectory"]

logger = logging.getLogger(__name__)

TRAJECTORY = "course.parquet"
"""The file with one row per (number of edits, scope, metric). The scope is ``all`` edits so far, the ``first_100``, or
``held_out`` text."""

HELD_OUT = 64
"""The number of corpus blocks whose perplexity is measured. C0 covers none of them."""

_SCHEMA = pa.schema([("edits", pa.int64()), ("scope", pa.string()), ("metric", pa.string()), ("value", pa.float64())])
_BLOCKS = "blocks.parquet"


@dataclass(frozen=True)
class Trajectory:
    """The tables of a sequence.

    Attributes:
        artifact: holds ``TRAJECTORY``.
        edit: the last edit; holds ``MEASURES`` and ``FACTS`` of every batch.
    """

    artifact: Artifact
    edit: Artifact

    def scores(self) -> pa.Table:
        """``edits``, ``scope``, ``metric``, ``value``."""
        return load_table(self.artifact.path / TRAJECTORY)

    def measures(self) -> pa.Table:
        """One row per (batch, layer)."""
        return load_table(self.edit.path / MEASURES)

    def facts(self) -> pa.Table:
        """One row per fact."""
        return load_table(self.edit.path / FACTS)


def perplexity_series(model: Fingerprint, corpus: Corpus, edit: str | None) -> Series:
    """The series of the NLL of corpus blocks under the weights of an edit, given by its digest, or of none."""
    inputs = {**model.inputs, "tokens": token_series(corpus, model).digest, **({"edit": edit} if edit else {})}
    return Series("perplexity", 1, model.parameters, inputs)


@stage("trajectory")
def trajectory(
    workspace: Workspace,
    model: Model,
    corpus: Corpus,
    budget: TokenBudget,
    families: Sequence[MetricFamily],
    batches: FactBatches,
    edits: Sequence[Artifact],
) -> Outcome[Trajectory]:
    """Score every edit of a sequence on the facts written so far, on the first of them, and on held-out text.

    Args:
        workspace: the run's workspace.
        model: the model.
        corpus: the source of held-out text.
        budget: the tokens that are not held out.
        families: the metric families.
        batches: the records, and after which batches the model is scored.
        edits: the edits after each of these batches.
    """
    counts = [batches.counts[number - 1] for number in batches.scored or ()]
    records = batches.records
    prompts = sum(
        family.work(one.record, 1) for family in families for count in counts for one in family.asked(records[:count])
    )
    with progress("trajectory", prompts + HELD_OUT * (1 + len(edits))) as advance:
        # Held-out text begins after what any method would read, if the corpus is long enough. All methods are then
        # measured on the same text.
        first = last_reached(workspace.store, model, corpus, budget.most, budget.any_method)
        texts = [_held_out_nll(workspace, model, corpus, edit, first, advance) for edit in (None, *edits)]
        scored = {
            family.name: [
                score_records(workspace, model, family, edit, records[:count], advance)
                for edit, count in zip(edits, counts, strict=True)
            ]
            for family in families
        }
        unedited = {
            family.name: score_records(workspace, model, family, None, records, advance)
            for family in families
            if family.conditional
        }
    conditions = {"conditions": {name: one.series.digest for name, one in unedited.items()}} if unedited else {}
    recipe = Series("course", 1, {"first": FIRST}).member(
        edits=dict(zip(map(str, counts), (edit.digest for edit in edits), strict=True)),
        scores={name: [one.series.digest for one in by_count] for name, by_count in scored.items()},
        records={family.name: [record.digest(family.kinds) for record in records] for family in families},
        texts=[text.digest for text, _ in texts],
        **conditions,
    )

    def counted(family: MetricFamily, one: RecordScores) -> pa.Table:
        return family.counted(one.rows, unedited[family.name].rows) if family.conditional else one.rows

    def build(draft: Draft) -> None:
        rows = [
            {"edits": count, "scope": "held_out", "metric": "perplexity", "value": _perplexity(text)}
            for (text, _), count in zip(texts, (0, *counts), strict=True)
            if text.summary["blocks"]
        ]
        for place, count in enumerate(counts):
            for scope, most in (("all", count), (f"first_{FIRST}", FIRST)):
                at_count = [(family, scored[family.name][place]) for family in families]
                parts = [values_by_fact(family, counted(family, one), one.records[:most]) for family, one in at_count]
                values = RecordValues.of(pa.concat_tables(parts), families).summary()
                rows += [
                    {"edits": count, "scope": scope, "metric": metric, "value": value}
                    for metric, value in values.items()
                    if value is not None
                ]
        draft.read_from(*(text for text, _ in texts), *edits)
        for one in [*unedited.values(), *(one for by_count in scored.values() for one in by_count)]:
            draft.read_from(*one.sources)
        save_table(draft.path / TRAJECTORY, pa.Table.from_pylist(rows, schema=_SCHEMA))
        draft.summary = {"edits": counts}

    if not texts[0][0].summary["blocks"]:
        logger.warning(
            "corpus %s has no text left that C0 does not cover: perplexity is not measured", corpus.settings.name
        )
    artifact, table_built = workspace.store.get_or_build(recipe, build)
    newly_scored = sum(one.built for by_count in scored.values() for one in by_count)
    built = table_built or newly_scored > 0 or any(built for _, built in texts)
    metrics = {"times": len(counts), "records_scored": newly_scored}
    return Outcome(Trajectory(artifact, edits[-1]), artifact.address, built, metrics)


def _held_out_nll(
    workspace: Workspace,
    model: Model,
    corpus: Corpus,
    edit: Artifact | None,
    first: int,
    advance: Callable[[int], None],
) -> tuple[Artifact, bool]:
    """The NLL of the blocks after ``first`` tokens under the weights of ``edit``, and whether it had to be computed."""
    series = perplexity_series(model.fingerprint, corpus, edit.digest if edit else None)

    def build(draft: Draft) -> None:
        shards, blocks = held_out_blocks(workspace.store, model, corpus, first, HELD_OUT)
        with read_edit(edit).applied(model.decoder):
            nll = block_nll(model.decoder, blocks, most_tokens=model.limits.most_tokens, advance=advance)
        draft.read_from(*shards, *([edit] if edit else []))
        save_table(draft.path / _BLOCKS, pa.table({"tokens": [len(block) - 1 for block in blocks], "nll": nll}))
        draft.summary = {"blocks": len(blocks), "first": first}
        draft.made = {**workspace.made, **model.made}

    return workspace.store.get_or_build(series.member(first=first, blocks=HELD_OUT), build)


def _perplexity(text: Artifact) -> float:
    table = load_table(text.path / _BLOCKS)
    return perplexity(table["nll"].to_pylist(), table["tokens"].to_pylist())
