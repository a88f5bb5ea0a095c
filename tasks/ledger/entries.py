"""Entries of a ledger, from the records that an edit writes and from what a run found out about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from factsmith.tasks.facts.batches import ordered_facts
from factsmith.tasks.facts.record import Record
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit, LedgerFact

__all__ = ["COUNTS", "distinct", "facts_of", "held", "ledger_of", "scored", "scores_of"]


def facts_of(batches: Sequence[Sequence[Record]]) -> tuple[LedgerFact, ...]:
    """The facts of an edit: those of its one batch, or of the batches of a sequence, in the order they were written."""
    return tuple(
        LedgerFact(
            case_id=one.request.case_id,
            subject=one.request.subject,
            template=one.request.template,
            target_new=one.request.target_new,
            target_true=one.request.target_true,
            relation=one.relation,
            batch=number,
        )
        for number, batch in enumerate(batches, start=1)
        for one in ordered_facts(batch)
    )


COUNTS = ("facts", "facts_held")
"""The scores that count facts. All others are percent."""


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores of an edited model among the metrics of a run: those after the edit, and counts of facts."""
    after = {name.removeprefix("after/"): value for name, value in metrics.items() if name.startswith("after/")}
    return after | {name: metrics[name] for name in COUNTS if name in metrics}


def scored(edit: LedgerEdit, scores: Mapping[str, float], holds: Mapping[int, bool]) -> LedgerEdit:
    """``edit`` with further scores, and whether the facts of these case ids hold."""
    facts = tuple(
        one.model_copy(update={"holds": holds[one.case_id]}) if one.case_id in holds else one for one in edit.facts
    )
    return edit.model_copy(update={"scores": {**edit.scores, **scores}, "facts": facts})


def ledger_of(ledgers: Sequence[Ledger], place: str, batches: int | None) -> Ledger:
    """The ledger of one edit of a run.

    Args:
        ledgers: the ledgers of the edits that the run ended with.
        place: where the store keeps the edit.
        batches: number of batches that it holds, if it is what the first batches of a sequence left.
    """
    found = next((one for one in ledgers if one.edits[-1].edit == place), None)
    if found is not None:
        return found
    whole = ledgers[-1]
    last = whole.edits[-1]
    facts = tuple(one.model_copy(update={"holds": None}) for one in last.facts if one.batch <= (batches or 0))
    part = last.model_copy(update={"edit": place, "facts": facts, "scores": {}})
    return whole.model_copy(update={"edits": (*whole.edits[:-1], part)})


def distinct(ledgers: Iterable[Ledger]) -> list[Ledger]:
    """Ledgers, each once, and without those whose edits are the first edits of another one.

    Of two ledgers with the same edits, the first one stays, which says when they were made first. It gets the scores of
    the other one.
    """
    by_edits: dict[tuple[str, ...], Ledger] = {}
    for ledger in ledgers:
        name = tuple(edit.edit for edit in ledger.edits)
        first = by_edits.setdefault(name, ledger)
        if first is not ledger:
            pairs = zip(first.edits, ledger.edits, strict=True)
            merged = (scored(one, other.scores, _holds(other)) for one, other in pairs)
            by_edits[name] = first.model_copy(update={"edits": tuple(merged)})
    beginnings = {name[:count] for name in by_edits for count in range(len(name))}
    return [ledger for name, ledger in by_edits.items() if name not in beginnings]


def held(answers: Iterable[Mapping[str, Any]]) -> dict[int, bool]:
    """Whether all facts of each case id hold. Rows have ``case_id`` and ``holds``."""
    found: dict[int, bool] = {}
    for one in answers:
        found[one["case_id"]] = found.get(one["case_id"], True) and bool(one["holds"])
    return found


def _holds(edit: LedgerEdit) -> dict[int, bool]:
    return held({"case_id": one.case_id, "holds": one.holds} for one in edit.facts if one.holds is not None)
