"""Which facts of a ledger are still what the model was told last, and which later facts took their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.texts import appearance
from factsmith.tasks.ledger.ledger import Ledger, LedgerEdit, LedgerFact

__all__ = ["Line", "contradictions", "find_line", "ledger_lines", "written"]

_MOST_LISTED = 20


@dataclass(frozen=True)
class Line:
    """A fact in the list of what was written.

    Attributes:
        number: its number in the list, from 1.
        edit: the edit that wrote it.
        fact: the fact.
        later: the number of the next later fact about the same subject and prompt, or in the same relation; ``None`` if
            there is none.
        overwritten: whether that fact has another object.
    """

    number: int
    edit: LedgerEdit
    fact: LedgerFact
    later: int | None = None
    overwritten: bool = False

    @property
    def status(self) -> str:
        """What became of the fact, for tables."""
        if self.later is None:
            return "current"
        return f"{'overwritten by' if self.overwritten else 'again in'} #{self.later}"


def ledger_lines(ledgers: Iterable[Ledger]) -> list[Line]:
    """The facts of ledgers, numbered through. Facts of different ledgers are in different models.

    A fact is overwritten by a later fact of the same ledger that asks for another object of the same subject, with the
    same prompt or in the same relation. Texts that look the same are the same here. Facts of one batch were written
    together, and are not compared with each other.
    """
    found: list[Line] = []
    for ledger in ledgers:
        found += _lines(ledger, len(found) + 1)
    return found


def contradictions(ledger: Ledger) -> list[tuple[Line, Line]]:
    """Pairs of facts of which the second one overwrites the first."""
    lines = _lines(ledger, 1)
    return [(line, lines[line.later - 1]) for line in lines if line.later is not None and line.overwritten]


def find_line(lines: Sequence[Line], name: str) -> Line:
    """The line that ``name`` means: ``#NUMBER``, a number in the list, a case id, or a subject.

    Raises:
        InputError: no line, or more than one, is meant. The message lists them.
    """
    wanted = appearance(name.strip())
    number = wanted.removeprefix("#")
    if wanted.startswith("#"):
        found = [line for line in lines if str(line.number) == number]
    else:
        found = [line for line in lines if wanted in (str(line.number), str(line.fact.case_id))]
        found += [line for line in lines if appearance(line.fact.subject) == wanted and line not in found]
    if len(found) == 1:
        return found[0]
    listed = found or lines
    raise InputError(
        f"{len(found) or 'No'} facts match {name!r}.",
        got="; ".join(f"#{one.number} {written(one.fact)}, case {one.fact.case_id}" for one in listed[:_MOST_LISTED])
        + ("; ..." if len(listed) > _MOST_LISTED else "")
        or "no facts at all",
        expected="one fact: its number with #, its case id, or its subject",
        remedy=f"give #{listed[0].number} for the first of them" if listed else None,
    )


def written(fact: LedgerFact) -> str:
    """A fact on one line."""
    return f"{fact.prompt!r}: {fact.target_new!r}"


def _lines(ledger: Ledger, start: int) -> list[Line]:
    """The lines of one ledger. The last facts come first, so that each one knows the next that follows it."""
    numbered = [(edit, fact) for edit in ledger.edits for fact in edit.facts]
    found: list[Line] = []
    batches = [(place, fact.batch) for place, edit in enumerate(ledger.edits) for fact in edit.facts]
    later: dict[tuple[str, ...], int] = {}
    pending: dict[tuple[str, ...], int] = {}
    for index in reversed(range(len(numbered))):
        edit, fact = numbered[index]
        if index + 1 < len(numbered) and batches[index] != batches[index + 1]:
            later |= pending
            pending = {}
        places = _places(fact)
        next_one = min((later[place] for place in places if place in later), default=None)
        changed = next_one is not None and not _same(fact, numbered[next_one][1])
        number = None if next_one is None else start + next_one
        found.append(Line(start + index, edit, fact, number, changed))
        pending |= dict.fromkeys(places, index)
    return found[::-1]


def _places(fact: LedgerFact) -> list[tuple[str, ...]]:
    """What a fact is about: its subject and prompt, and its subject and relation."""
    subject = appearance(fact.subject)
    return [
        ("prompt", subject, appearance(fact.prompt)),
        *([("relation", subject, fact.relation)] if fact.relation else []),
    ]


def _same(one: LedgerFact, other: LedgerFact) -> bool:
    return appearance(one.target_new) == appearance(other.target_new)
