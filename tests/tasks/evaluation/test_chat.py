"""Answers in a chat against hand-computed values, and against transformers' own generation."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.evaluation.metrics.chat import FAMILY, gives
from factsmith.tasks.evaluation.metrics.counterfact import FAMILY as COUNTERFACT
from factsmith.tasks.evaluation.stage import score_series
from factsmith.tasks.evaluation.summary import RecordValues
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.model import Fingerprint
from tests.chats import LLAMA_2, PLAIN
from tests.conftest import load, load_plain


@pytest.mark.parametrize(
    ("answer", "wanted", "counts"),
    [
        ("The Eiffel Tower is located in Rome, Italy.", "Rome", True),
        ("Rome", "Rome", True),
        ("In the Romean hills.", "Rome", False),
        ("ROME is the place.", "rome", True),
        ("It is in New\nYork.", "New York", True),
        ("Orle\u0301ans.", "Orléans", True),
        ("Paris Tower is in France.", "Paris", False),
        ("Paris Tower is in Paris.", "Paris", True),
        ("paris tower: Paris", "Paris", True),
        ("", "Rome", False),
    ],
)
def test_whole_words_outside_the_subject_by_hand(answer, wanted, counts):
    assert gives(answer, wanted, "Paris Tower") is counts


def record(*paraphrases: str) -> Record:
    request = EditRequest(7, "Mara Flousano", "{} speaks", "Danish", "Greek")
    neighbor = {"Which language does Ena Covus speak?": "Greek"}
    plain = Record(request, {"rewrite": (request.prompt,), "paraphrase": ("Her language is",)}, 0)
    return plain.asked_as(["Which language does {} speak?", *paraphrases], neighbor)


def test_shares_by_hand():
    def row(record: str, kind: str, correct: bool | None) -> dict:
        answer = None if correct is None else "a"
        base = {"record": record, "case_id": 1, "kind": kind, "index": 0, "prompt": "p"}
        return {**base, "answer": answer, "correct": correct}

    rows = [
        row("a", "question", True), row("b", "question", False),
        row("a", "question_paraphrase", True), row("a", "question_paraphrase", False),
        row("b", "question_paraphrase", True), row("b", "question_paraphrase", None),
        row("a", "question_neighborhood", True),
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=FAMILY.schema)
    values = RecordValues.of(FAMILY.by_record(table), [FAMILY])
    # ChatGen is the mean of 1/2 and 1; ChatH is 3 / (1 / 0.5 + 1 / 0.75 + 1 / 1) = 9 / 13.
    assert values.summary() == {"ChatEff": 50, "ChatGen": 75, "ChatSpe": 100, "ChatH": pytest.approx(900 / 13)}
    assert values.counts["ChatH"] == 1
    assert FAMILY.skipped(table) == 1


@pytest.mark.parametrize("template", [PLAIN, LLAMA_2])
def test_answers_are_those_of_transformers(llama_folder, template):
    decoder, plain = load(llama_folder), load_plain(llama_folder)
    decoder.tokenizer.chat_template = template
    one = record("What is the mother tongue of Mara Flousano?", "A" * 4 * decoder.context_length)
    rows = FAMILY.score(decoder, [one], most_tokens=1000)
    assert rows["kind"].to_pylist() == ["question", *2 * ["question_paraphrase"], "question_neighborhood"]
    assert rows.schema == FAMILY.schema
    assert FAMILY.skipped(rows) == 1
    answers = rows["answer"].to_pylist()
    assert answers[2] is None  # It does not fit the model.
    for question, answer in zip(rows["prompt"].to_pylist(), answers, strict=True):
        if answer is not None:
            turns = [{"role": "user", "content": question}]
            given = decoder.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
            tokens = plain.generate(**given, max_new_tokens=24, do_sample=False)[0]
            said = decoder.tokenizer.decode(tokens[given["input_ids"].shape[1] :], skip_special_tokens=True)
            assert answer == said.strip()
    assert any(answers)
    fed = [positions for positions, _ in FAMILY.passes(decoder.tokenizer, one)]
    assert max(fed) > decoder.context_length > min(fed)


@pytest.mark.parametrize(
    ("answers", "correct"),
    [
        (["It is Danish.", "Danish", "He speaks Greek."], [True, True, True]),
        (["It is Greek.", "Danishes", "Danish"], [False, False, False]),
    ],
)
def test_the_object_of_each_kind_of_question_counts(decoder, monkeypatch, answers, correct):
    tokenizer = decoder.tokenizer
    tokenizer.chat_template = PLAIN
    spelled = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    monkeypatch.setattr("factsmith.tasks.decoder.generation.continuations", lambda *_, **__: spelled)
    rows = FAMILY.score(decoder, [record("What is her language?")], most_tokens=1000)
    assert rows["answer"].to_pylist() == answers
    assert rows["correct"].to_pylist() == correct


def test_what_cannot_be_asked_is_refused(decoder):
    with pytest.raises(InputError, match="no chat template"):
        FAMILY.check(decoder.tokenizer, [record()])
    decoder.tokenizer.chat_template = PLAIN
    FAMILY.check(decoder.tokenizer, [record()])
    request = record().request
    with pytest.raises(InputError, match="no record has one"):
        FAMILY.check(decoder.tokenizer, [Record(request, {"rewrite": (request.prompt,)}, 0)])


def test_it_is_refused_before_anything_runs(refused, arguments):
    assert "no chat template" in refused("run", *arguments("dataset.metrics=[counterfact,chat]"))


def test_scores_of_other_families_keep_their_names():
    """Questions and the chat template are part of the names of the scores of ``chat`` alone."""
    asked, plain = record(), Record(record().request, record().prompts, 0)
    bare = Record(asked.request, {kind: asked.prompts[kind] for kind in ("rewrite", "paraphrase")}, 0)
    assert asked.digest(COUNTERFACT.kinds) == bare.digest(COUNTERFACT.kinds)
    assert asked.digest(FAMILY.kinds) != bare.digest(FAMILY.kinds)
    assert plain.digest(FAMILY.kinds) != asked.digest(FAMILY.kinds)  # other answers
    model = Fingerprint("w", "t", "float32", "eager")

    def digest(family, template: str | None) -> str:
        tokenizer = SimpleNamespace(
            chat_template=template,
            apply_chat_template=lambda turns, **_: template.replace("Q", turns[0]["content"]),
        )
        return score_series(model, tokenizer, family, None).digest

    assert digest(COUNTERFACT, "1 Q") == digest(COUNTERFACT, None)
    assert digest(FAMILY, "1 Q") != digest(FAMILY, "2 Q")
