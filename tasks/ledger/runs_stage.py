"""The ledgers of earlier runs: what they kept in MLflow, with what was measured since.

A run keeps its ledgers when it has written its facts. They are joined with the run's scores when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_json
from factsmith.artifacts.store import Store
from factsmith.tasks.edit.stage import REQUESTS, base_inputs
from factsmith.tasks.evaluation.family import load_families
from factsmith.tasks.ledger.entries import distinct, held, scored, scores_of
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit, LedgerFact
from factsmith.tasks.tracking.runs import ANSWERS, PastRun
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["LEDGERS", "keep_ledgers", "ledgers_on", "run_ledgers"]

LEDGERS = "ledgers.json"
"""The file of a run in MLflow with the ledger of each of its edits: one for each batch, or one for a sequence."""

_EXACT = 1 - 1e-9
"""The least value of a metric at which a fact holds."""

_LEDGERS = TypeAdapter(list[Ledger])


def keep_ledgers(tracker: Tracker, ledgers: Sequence[Ledger]) -> None:
    """Keep the ledgers of a run that is under way."""
    tracker.document([one.model_dump(mode="json") for one in ledgers], LEDGERS)


def run_ledgers(run: PastRun, store: Store) -> list[Ledger]:
    """The ledger of each edit that a run made, with its scores.

    Raises:
        InputError: the run made no edit, or another version of Factsmith wrote its ledgers.
    """
    try:
        content = run.document(LEDGERS)
    except InputError:
        ledgers = _from_edits(run, store)
    else:
        try:
            ledgers = _LEDGERS.validate_python(content)
        except ValidationError as error:
            raise InputError(
                f"The ledgers of run {run.id} cannot be used.",
                got=error.errors()[0]["msg"],
                remedy="another version of Factsmith made it: run it again",
            ) from None
    scores = scores_of(run.metrics)
    holds = _held(run)
    return [
        one.model_copy(update={"edits": (*one.edits[:-1], scored(one.edits[-1], scores, holds))}) for one in ledgers
    ]


def ledgers_on(runs: Iterable[PastRun], store: Store, path: str, weights: str | None) -> list[Ledger]:
    """The ledgers of all edits of a model, whatever run made them, oldest first.

    Args:
        runs: the runs.
        store: the artifact store.
        path: what runs call the model.
        weights: its fingerprint; ``None`` if it is not known, because the weights are not here.
    """
    found: list[Ledger] = []
    for run in sorted(runs, key=lambda one: one.started):
        try:
            ledgers = run_ledgers(run, store)
        except InputError:
            continue  # It has made no edit, or its edits are gone.
        for one in ledgers:
            bases = {one.weights, *(edit.weights for edit in one.edits)}
            if weights in bases or (weights is None and path in {one.base, *(edit.model for edit in one.edits)}):
                found.append(one)
    return distinct(found)


def _from_edits(run: PastRun, store: Store) -> list[Ledger]:
    """The ledgers of a run that kept none, from the facts in its edits."""
    content = run.content
    edits = [artifact for place in run.edits if (artifact := store.at(place)) is not None]
    if content["method"].get("sequence", {}).get("history") is not None:
        edits = edits[-1:]
    return [_ledger(run, content, artifact, base_inputs(store, artifact).get("model", "")) for artifact in edits]


def _ledger(run: PastRun, content: dict[str, Any], artifact: Artifact, weights: str) -> Ledger:
    facts = tuple(LedgerFact(**one) for one in load_json(artifact.path / REQUESTS))
    model = content["model"]["path"]
    edit = LedgerEdit(
        edit=artifact.place,
        run=run.id,
        written=run.started,
        model=model,
        weights=weights,
        method=content["method"]["name"],
        settings={name: content[name] for name in ("model", "corpus", "method", "dataset") if name in content},
        facts=facts,
    )
    return Ledger(base=model, weights=weights, edits=(edit,))


def _held(run: PastRun) -> dict[int, bool]:
    """Whether each fact of a run holds, by its case id; empty if nothing was asked."""
    try:
        return held(run.document(ANSWERS))
    except InputError:
        pass
    try:
        table = run.records()
    except InputError:
        return {}
    judging = [name for family in load_families(run.content["dataset"]["metrics"]) for name in family.efficacy]
    rows = table.select(["phase", "record", "case_id", "metric", "value"]).to_pylist()
    after = [row for row in rows if row["phase"] == "after" and row["metric"] in judging]
    # The first of these metrics that a fact has counts.
    after.sort(key=lambda row: judging.index(row["metric"]), reverse=True)
    by_fact = {row["record"]: row for row in after}
    return held({"case_id": row["case_id"], "holds": row["value"] >= _EXACT} for row in by_fact.values())
