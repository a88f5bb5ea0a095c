"""Greedy answers against hand-computed values, and against teacher forcing."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pytest

from factsmith.tasks.evaluation.metrics.counterfact import FAMILY as COUNTERFACT
from factsmith.tasks.evaluation.metrics.greedy import FAMILY, opens_with
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.facts.datasets.embedded import load as embedded_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings
from tests.conftest import load

ASSETS = Path(str(resources.files("factsmith.tasks.model.embedded") / "assets"))


@pytest.mark.parametrize(
    ("answer", "wanted", "opens"),
    [
        (" English. She", "English", True),
        (" English", "English", True),
        ("\n\tEnglish-speaking", "English", True),
        (" English's", "English", True),
        (" Englishman", "English", False),
        (" English2", "English", False),
        (" english", "English", False),
        (" the English", "English", False),
        (" Eng", "English", False),
        ("", "English", False),
        (" New  York City", "New York", True),
        (" New York", " New\nYork ", True),
        (" Newark", "New York", False),
        (" Orle\u0301ans", "Orléans", True),
        (" Orle\u0301ans", "Orle", False),
        (" Zoe\u0308", "Zoe", False),
        (" हिन्दी", "हिन्द", False),
        (" U.S.A", "U.S.", True),
        ("English", "English", False),  # "is" and "English" would be one word
    ],
)
def test_whole_words_by_hand(answer, wanted, opens):
    assert opens_with(answer, wanted, "Her mother tongue is") is opens


def test_an_answer_may_touch_a_prompt_that_ends_in_no_word():
    assert opens_with("English.", "English", "She speaks (")
    assert opens_with("English.", "English", "She speaks ")


def record(*paraphrases: str, wanted: str = "Danish") -> Record:
    request = EditRequest(7, "Mara Flousano", "{} speaks", wanted, "Greek")
    return Record(request, {"rewrite": (request.prompt,), "paraphrase": paraphrases}, 0)


def summarise(rows: pa.Table) -> dict[str, float | None]:
    return RecordValues.of(FAMILY.by_record(rows), [FAMILY]).summary()


def test_shares_by_hand():
    def row(record: str, kind: str, correct: bool | None) -> dict:
        answer = None if correct is None else "a"
        base = {"record": record, "case_id": 1, "kind": kind, "index": 0, "prompt": "p"}
        return {**base, "answer": answer, "correct": correct}

    rows = [
        row("a", "rewrite", True), row("b", "rewrite", False),
        row("a", "paraphrase", True), row("a", "paraphrase", False), row("b", "paraphrase", True),
        row("b", "paraphrase", None),
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=FAMILY.schema)
    assert summarise(table) == {"FreeEff": 50.0, "FreeGen": 75.0}
    assert FAMILY.skipped(table) == 1


def test_another_spelling_of_the_same_words_counts(decoder, monkeypatch):
    def spelled(decoder, prompts, limits, **_):
        return [[token for letter in " Danish." for token in decoder.tokenizer(letter)["input_ids"][-1:]]] * 2

    monkeypatch.setattr("factsmith.tasks.decoder.generation.continuations", spelled)
    rows = FAMILY.score(decoder, [record("Her mother tongue is")], most_tokens=1000)
    assert rows["answer"].to_pylist() == [" Danish."] * 2
    assert rows["correct"].to_pylist() == [True, True]


def test_scores_have_a_row_a_prompt_and_what_does_not_fit_is_skipped(decoder):
    one = record("Her mother tongue is", " A" * decoder.context_length)
    done: list[int] = []
    rows = FAMILY.score(decoder, [one, record(wanted="Danish " * 200)], most_tokens=1000, advance=done.append)
    assert rows.schema == FAMILY.schema
    assert rows["kind"].to_pylist() == ["rewrite", "paraphrase", "paraphrase", "rewrite"]
    assert [answer is None for answer in rows["answer"].to_pylist()] == [False, False, True, True]
    assert FAMILY.skipped(rows) == 2
    assert sum(done) == 4


def test_no_more_is_run_than_was_planned(decoder):
    asked = record("Her mother tongue is", "A")
    seen: list[int] = []
    decoder.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2].numel()))
    FAMILY.score(decoder, [asked], most_tokens=1)  # no padding
    told = FAMILY.passes(decoder.tokenizer, asked)
    assert [read for _, read in told] == [told[0][1]] * 3
    assert 0 < sum(seen) <= sum(positions for positions, _ in told)


@pytest.fixture(scope="module")
def embedded():
    return load(ASSETS)


def both(embedded, records: list[Record]) -> list[tuple[bool, bool, str]]:
    """For each prompt, whether teacher forcing counts it, whether its answer counts, and the answer."""
    forced, free = (family.score(embedded, records, most_tokens=4096).to_pylist() for family in (COUNTERFACT, FAMILY))
    exact = {(one["record"], one["kind"], one["index"]): one["correct_new"] == one["tokens_new"] for one in forced}
    names = {one.digest(FAMILY.kinds): one.digest(COUNTERFACT.kinds) for one in records}
    return [(exact[names[one["record"]], one["kind"], one["index"]], one["correct"], one["answer"]) for one in free]


@pytest.mark.parametrize("wanted", ["target_true", "target_new"])
def test_what_is_said_is_what_teacher_forcing_counts(embedded, wanted):
    """Where words end where objects do, and are spelled in the same tokens."""
    records = embedded_records(DatasetSettings(name="embedded", format="embedded", split="test"))[:30]
    records = [
        replace(one, request=replace(one.request, target_new=str(getattr(one.request, wanted)))) for one in records
    ]
    found = both(embedded, records)
    assert len(found) == 90
    assert {(exact, correct) for exact, correct, _ in found} == {(wanted == "target_true",) * 2}


@pytest.mark.parametrize(("wanted", "said"), [("Covus", True), ("Cov", False), ("C", False), ("Kovus", None)])
def test_a_longer_word_is_counted_by_teacher_forcing_alone(embedded, wanted, said):
    """The model repeats a name of several tokens: C, ov, us."""
    request = EditRequest(1, "Ena", "Ena Covus was born in Oslo. {}", wanted, None)
    ((exact, correct, answer),) = both(embedded, [Record(request, {"rewrite": (request.prompt,)}, 0)])
    assert answer.startswith(" Covus ")
    assert exact is (said is not None)
    assert correct is bool(said)
