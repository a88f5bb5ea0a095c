"""Ledgers: what is overwritten, which fact a name means, and files that cannot be used."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.deltas.file import DeltaAbout
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.ledger.entries import distinct, facts_of, held, scored, scores_of
from factsmith.tasks.ledger.ledger import LEDGER, Ledger, LedgerEdit, LedgerFact, read_ledger, write_ledger
from factsmith.tasks.ledger.status import contradictions, find_line, ledger_lines

WRITTEN = datetime(2026, 1, 2, tzinfo=UTC)


def fact(case: int, subject: str, template: str, target: str, **more) -> LedgerFact:
    return LedgerFact(case_id=case, subject=subject, template=template, target_new=target, **more)


def edit(name: str, *facts: LedgerFact, run: str | None = "run") -> LedgerEdit:
    return LedgerEdit(edit=name, run=run, written=WRITTEN, model="M", weights="0" * 32, method="memit", facts=facts)


def ledger(*edits: LedgerEdit) -> Ledger:
    return Ledger(base="M", weights="0" * 32, edits=edits)


ROME = fact(7, "Eiffel Tower", "The {} is in", "Rome", relation="P131")
STACK = ledger(
    edit("edit/a/1", ROME, fact(8, "Louvre", "The {} is in", "Oslo")),
    edit("edit/a/2", fact(9, "Eiffel Tower", "{} stands in", "Berlin", relation="P131")),
    edit("edit/a/3", fact(1, "Louvre", "The  {} is in", "Oslo"), fact(2, "Ada", "{} was born in", "Lima")),
)
"""The third fact contradicts the first by its relation, and the fourth repeats the second."""


def test_later_facts_overwrite_earlier_ones_by_prompt_or_relation():
    assert [line.status for line in ledger_lines([STACK])] == [
        "overwritten by #3", "again in #4", "current", "current", "current",
    ]  # fmt: skip
    assert [(one.number, other.number) for one, other in contradictions(STACK)] == [(1, 3)]


def test_ledgers_of_different_models_are_numbered_through_and_not_compared():
    other = ledger(edit("edit/b/1", fact(7, "Eiffel Tower", "The {} is in", "Bonn")))
    lines = ledger_lines([ledger(edit("edit/a/1", ROME)), other])
    assert [(line.number, line.status) for line in lines] == [(1, "current"), (2, "current")]


def test_facts_of_one_batch_are_not_compared_and_batches_of_a_sequence_are():
    one, other = fact(1, "Ada", "{} is", "a"), fact(2, "Ada", "{} is", "b")
    assert not contradictions(ledger(edit("edit/a/1", one, other)))
    after = other.model_copy(update={"batch": 2})
    assert [(a.number, b.number) for a, b in contradictions(ledger(edit("edit/a/1", one, after)))] == [(1, 2)]


@pytest.mark.parametrize(("name", "number"), [("#2", 2), ("7", 1), ("Ada", 5), ("9", 3), (" Ada ", 5)])
def test_a_fact_is_found_by_number_case_and_subject(name, number):
    assert find_line(ledger_lines([STACK]), name).number == number


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Louvre", "2 facts match 'Louvre'"),
        ("2", "#2 'The Louvre is in': 'Oslo', case 8; #5 'Ada was born in': 'Lima', case 2"),
        ("Bonn", "No facts match 'Bonn'"),
        ("#6", "No facts match '#6'"),
    ],
)
def test_a_name_that_means_no_fact_or_several_is_refused_with_the_list(name, said):
    with pytest.raises(InputError) as caught:
        find_line(ledger_lines([STACK]), name)
    assert said in str(caught.value)


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    assert read_ledger(tmp_path) is None
    write_ledger(tmp_path, STACK)
    assert read_ledger(tmp_path) == STACK


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"version": 2, "base": "M", "weights": "0"}',
        '{"version": 1, "base": "M", "weights": "0", "more": 1}',
        '{"version": 1, "base": "M", "weights": "0", "edits": [{"edit": "edit/a/1"}]}',
    ],
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path, content):
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(InputError, match=r"ledger\.json cannot be used"):
        read_ledger(tmp_path)


def test_the_scores_of_a_collapsed_model_are_read_again(tmp_path):
    """A perplexity may be infinite. Also in a delta, which has the edits that it removes."""
    one = edit("a", fact(0, "A", "{} is", "b")).model_copy(update={"scores": {"perplexity": float("inf")}})
    write_ledger(tmp_path, ledger(one))
    json.loads((tmp_path / LEDGER).read_text(), parse_constant=pytest.fail)
    assert read_ledger(tmp_path).edits == (one,)
    digest = "0" * 64
    about = DeltaAbout(
        base="m", weights="w", dtype="float32", before=digest, after=digest, tensors={}, keeps="entries", adds=0,
        removes=(one,), sha256=digest,
    )  # fmt: skip
    assert DeltaAbout.model_validate_json(about.model_dump_json()).removes == (one,)


def test_a_time_needs_a_zone(tmp_path):
    write_ledger(tmp_path, STACK)
    content = json.loads((tmp_path / LEDGER).read_text())
    content["edits"][0]["written"] = "2026-01-02T00:00:00"
    (tmp_path / LEDGER).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"edits\.0\.written"):
        read_ledger(tmp_path)


def test_the_facts_of_a_sequence_have_the_number_of_their_batch():
    requests = [EditRequest(case, "Ada", f"{{}} is {case}", "a", "b") for case in range(3)]
    records = [Record(one, {}, 0, relation="P1") for one in requests]
    found = facts_of([records[:2], records[2:]])
    assert sorted((one.case_id, one.batch, one.relation, one.target_true) for one in found) == [
        (0, 1, "P1", "b"), (1, 1, "P1", "b"), (2, 2, "P1", "b"),
    ]  # fmt: skip


def test_the_same_edit_is_listed_once_with_all_scores():
    first, again = edit("edit/a/1", ROME, run="one"), edit("edit/a/1", ROME, run="two")
    again = scored(again, {"ES": 100.0}, {7: True})
    (found,) = distinct([ledger(first), ledger(again)])
    assert (found.edits[0].run, found.edits[0].scores, found.edits[0].facts[0].holds) == ("one", {"ES": 100.0}, True)
    assert distinct([ledger(STACK.edits[0]), STACK]) == [STACK]  # The stack has the edit too.


def test_scores_are_those_after_the_edit_and_a_case_holds_if_all_its_facts_do():
    metrics = {"after/ES": 90.0, "before/ES": 1.0, "facts": 2.0, "facts_held": 1.0, "seconds/edit": 3.0}
    assert scores_of(metrics) == {"ES": 90.0, "facts": 2.0, "facts_held": 1.0}
    rows = [{"case_id": 1, "holds": True}, {"case_id": 2, "holds": True}, {"case_id": 1, "holds": False}]
    assert held(rows) == {1: False, 2: True}
