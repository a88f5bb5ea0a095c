"""zsRE and portability questions: what is read, and what is refused."""

from __future__ import annotations

import json

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.selection import load_records, select_records
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.facts.texts import stripped
from factsmith.tasks.model.embedded.world import World

QUESTION = {
    "subject": "Ariadne musica",
    "src": "What instrument was Ariadne musica intended for?",
    "pred": "piano",
    "rephrase": "What was the instrument composed for Ariadne musica?",
    "alt": " orchestra ",
    "answers": ["organ", "pipe organ"],
    "loc": "nq question: who has the talismans in sailor moon s",
    "loc_ans": "Haruka",
    "portability": {"New Question": "What are the sections of what it is for?", "New Answer": "strings and brass"},
}
FORMATS = ("zsre", "zsre_portability")


def dataset(tmp_path, format_name: str, records: list) -> DatasetSettings:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(records))
    return DatasetSettings(name=format_name, format=format_name, path=path, seed=None)


def without(name: str) -> dict:
    return {key: value for key, value in QUESTION.items() if key != name}


def test_the_first_answer_is_written_and_nothing_is_asked_that_follows_from_another(tmp_path):
    (record,) = load_records(dataset(tmp_path, "zsre", [QUESTION]))
    request = record.request
    assert (request.case_id, request.subject) == (0, "Ariadne musica")
    assert request.template == "What instrument was {} intended for?"
    assert (request.target_new, request.target_true) == ("organ", None)
    assert record.prompts == {
        "rewrite": ("What instrument was Ariadne musica intended for?",),
        "paraphrase": ("What was the instrument composed for Ariadne musica?",),
        "neighborhood": ("nq question: who has the talismans in sailor moon s?",),
        "question": ("What instrument was Ariadne musica intended for?",),
        "question_paraphrase": ("What was the instrument composed for Ariadne musica?",),
        "question_neighborhood": ("who has the talismans in sailor moon s?",),
    }
    assert record.answers == {"neighborhood": ("Haruka",), "question_neighborhood": ("Haruka",)}


def test_portability_is_asked_where_the_alternative_is_written(tmp_path):
    (plain,) = load_records(dataset(tmp_path, "zsre", [QUESTION]))
    (record,) = load_records(dataset(tmp_path, "zsre_portability", [QUESTION]))
    assert (record.request.target_new, record.request.target_true) == ("orchestra", None)
    assert record.prompts == {**plain.prompts, "portability": ("What are the sections of what it is for?",)}
    assert record.answers == {**plain.answers, "portability": ("strings and brass",)}


def test_a_question_mark_is_not_put_twice(tmp_path):
    (record,) = load_records(dataset(tmp_path, "zsre", [{**QUESTION, "loc": "who is it?"}]))
    assert record.prompts["neighborhood"] == ("who is it?",)


def test_zsre_needs_neither_an_alternative_nor_what_follows_from_it(tmp_path):
    few = {key: QUESTION[key] for key in ("subject", "src", "rephrase", "answers", "loc", "loc_ans")}
    assert load_records(dataset(tmp_path, "zsre", [few])) == load_records(dataset(tmp_path, "zsre", [QUESTION]))


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without("subject"), "field 'subject' is missing"),
        (without("src"), "field 'src' is missing"),
        ({**QUESTION, "src": "What was it for?"}, r"the subject is not in the prompt \(field 'src'\)"),
        ({**QUESTION, "rephrase": 3}, "field 'rephrase' is not text"),
        ({**QUESTION, "loc": ""}, "field 'loc' is empty"),
        (without("loc_ans"), "field 'loc_ans' is missing"),
    ],
)
def test_a_bad_record_is_named_with_file_index_and_field(tmp_path, format_name, record, message):
    with pytest.raises(InputError, match=rf"Record 1 of .*questions\.json \(counted from 0\): {message}"):
        load_records(dataset(tmp_path, format_name, [QUESTION, record]))


@pytest.mark.parametrize(
    ("format_name", "record", "message"),
    [
        ("zsre", without("answers"), "field 'answers' is missing or empty"),
        ("zsre", {**QUESTION, "answers": []}, "field 'answers' is missing or empty"),
        ("zsre", {**QUESTION, "answers": "organ"}, "field 'answers' is not a list of texts"),
        ("zsre", {**QUESTION, "answers": [" "]}, "text 0 of the list in field 'answers' is empty"),
        ("zsre_portability", {**QUESTION, "alt": ""}, "field 'alt' is empty"),
        ("zsre_portability", without("portability"), "field 'portability' is missing"),
        ("zsre_portability", {**QUESTION, "portability": {}}, r"field 'portability\.New Question' is missing"),
        (
            "zsre_portability",
            {**QUESTION, "portability": {"New Question": "Q?", "New Answer": ""}},
            r"field 'portability\.New Answer' is empty",
        ),
    ],
)
def test_what_is_to_be_written_must_be_there(tmp_path, format_name, record, message):
    with pytest.raises(InputError, match=rf"Record 1 of .*questions\.json \(counted from 0\): {message}"):
        load_records(dataset(tmp_path, format_name, [QUESTION, record]))


def test_a_question_asked_twice_is_written_once(tmp_path):
    records = [QUESTION, {**QUESTION, "answers": ["violin"]}, {**QUESTION, "src": "What is Ariadne musica for?"}]
    assert [record.place for record in select_records(dataset(tmp_path, "zsre", records))] == [0, 2]


@pytest.mark.parametrize("format_name", ["counterfact", "facts"])
def test_records_of_counterfact_may_carry_a_portability_question(tmp_path, format_name):
    one, other, foreign = World(people_count=60).records()[:3]
    one["portability"] = QUESTION["portability"]
    foreign["portability"] = {"Reasoning": []}
    found = load_records(dataset(tmp_path, format_name, [one, other, foreign]))
    assert [record.prompts.get("portability") for record in found] == [
        ("What are the sections of what it is for?",), None, None,
    ]  # fmt: skip
    assert [record.answers.get("portability") for record in found] == [("strings and brass",), None, None]
    other["portability"] = {"New Question": "What is?"}
    with pytest.raises(InputError, match=r"Record 1 of .* field 'portability\.New Answer' is missing"):
        load_records(dataset(tmp_path, format_name, [one, other]))


def test_a_plain_fact_may_carry_a_portability_question(tmp_path):
    fact = {"subject": "Ada", "prompt": "{} was born in", "target_new": "Rome", "portability": QUESTION["portability"]}
    (record,) = load_records(dataset(tmp_path, "facts", [fact]))
    assert record.answers == {"portability": ("strings and brass",)}


@pytest.mark.parametrize("format_name", FORMATS)
def test_real_zsre(shared, format_name):
    path = shared / "data" / "zsre.json"
    raw = json.loads(path.read_text())
    settings = DatasetSettings(name=format_name, format=format_name, path=path, seed=None)
    records = select_records(settings)
    assert len(records) == len(raw) == 737
    for fields, record in zip(raw, records, strict=True):
        assert record.request.prompt == fields["src"]
        assert record.request.target_new == (fields["answers"][0] if format_name == "zsre" else fields["alt"].strip())
        assert record.prompts["neighborhood"] == (stripped(fields["loc"]) + "?",)
        assert ("portability" in record.prompts) == (format_name == "zsre_portability")
