"""Stage ``drift``: what edits do to the prediction of held-out text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_table, save_table
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.rows import RowSeries
from factsmith.tasks.corpus.budget import TokenBudget
from factsmith.tasks.corpus.corpus import Corpus
from factsmith.tasks.corpus.stage import held_out_blocks, last_reached, token_series
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.evaluation.held_out.drift import MEASURES, block_drift, drift_measures
from factsmith.tasks.evaluation.settings import DriftSettings
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["EDITS_AT_ONCE", "Drift", "drift", "drift_series"]

logger = logging.getLogger(__name__)

_POSITIONS = "positions.parquet"
"""The file with one row per (edit, position). ``edit`` is the digest of the edit."""

EDITS_AT_ONCE = 4
"""Most edits that share a pass of the unedited model and an artifact."""


@dataclass(frozen=True)
class Drift:
    """A measure of the unedited model and of the edits that were measured.

    Attributes:
        measure: its name, one of ``MEASURES``.
        before: its value for the unedited model; ``None`` for a measure that compares the two models.
        by_edit: its value for each edit.
    """

    measure: str
    before: float | None
    by_edit: tuple[float, ...]


def drift_series(model: Fingerprint, corpus: Corpus, first: int, blocks: int) -> Series:
    """The series of the drift on ``blocks`` blocks of text after ``first`` tokens. A row is an edit, by its digest."""
    inputs = {**model.inputs, "tokens": token_series(corpus, model).digest}
    return Series("drift", 1, {"first": first, "blocks": blocks, **model.parameters}, inputs)


@stage("drift")
def drift(
    workspace: Workspace,
    model: Model,
    corpus: Corpus,
    budget: TokenBudget,
    settings: DriftSettings,
    edits: Sequence[Artifact],
) -> Outcome[list[Drift]]:
    """Compare each of ``edits`` with the unedited model on text that C0 does not cover.

    The text begins where that of a trajectory's perplexity does, so all methods are measured on the same text.

    Args:
        workspace: the run's workspace.
        model: the model.
        corpus: the source of held-out text.
        budget: the tokens that are not held out.
        settings: how much text there is.
        edits: the edits to measure.

    Returns:
        The measures; none if the corpus has no text left.
    """
    first = last_reached(workspace.store, model, corpus, budget.most, budget.any_method)
    series = drift_series(model.fingerprint, corpus, first, settings.blocks)
    rows = RowSeries(workspace.store, series)
    by_digest = {edit.digest: edit for edit in edits}
    missing = by_digest.keys() - rows.find().keys()
    shards, blocks = held_out_blocks(workspace.store, model, corpus, first, settings.blocks) if missing else ([], [])
    if missing and not blocks:
        logger.warning("corpus %s has no text left that C0 does not cover: drift is not measured", corpus.settings.name)
        return Outcome([], series.address, False)
    with progress("drift", len(blocks) * len(missing)) as advance:

        def build(draft: Draft, digests: list[str]) -> None:
            measured = [by_digest[digest] for digest in digests]
            read = [read_edit(edit) for edit in measured]
            tables = block_drift(model.decoder, blocks, read, most_tokens=model.limits.most_tokens, advance=advance)
            named = [
                table.add_column(0, "edit", pa.array([digest] * len(table), pa.string()))
                for digest, table in zip(digests, tables, strict=True)
            ]
            draft.read_from(*shards, *measured)
            save_table(draft.path / _POSITIONS, pa.concat_tables(named))
            draft.summary = {"edits": len(digests), "blocks": len(blocks), "positions": len(tables[0])}
            draft.made = {**workspace.made, **model.made}

        found, built = rows.get_or_build(list(by_digest), build, at_once=EDITS_AT_ONCE)
    measured = []
    for edit in edits:
        table = load_table(found[edit.digest].artifact.path / _POSITIONS)
        measured.append(drift_measures(table.filter(pc.equal(table["edit"], edit.digest))))
    measures = [Drift(name, measured[0][name][0], tuple(one[name][1] for one in measured)) for name in MEASURES]
    return Outcome(measures, series.address, built > 0, {"edits": len(edits)})
