"""RippleEdits: subject and object of a sentence, and its tests."""

from __future__ import annotations

import json

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.selection import load_records
from factsmith.tasks.facts.settings import DatasetSettings


def query(prompt: str, *values: str, aliases: tuple[str, ...] = (), **given) -> dict:
    answers = [{"value": value, "aliases": list(aliases)} for value in values]
    ids = {"query_type": "regular", "subject_id": "Q9", "target_ids": ["Q8"], "relation": "X", "phrase": None}
    return {"prompt": prompt, "answers": answers, **ids, **given}


def case(*queries: dict, condition: str = "OR", needs: tuple[dict, ...] = ()) -> dict:
    return {"test_queries": list(queries), "test_condition": condition, "condition_queries": list(needs)}


def record(sentence: str, relation: str, original: str | None = None, **criteria) -> dict:
    edit = {"prompt": sentence, "subject_id": "Q1", "relation": relation, "target_id": "Q2"}
    if original is not None:
        edit["original_fact"] = {**edit, "prompt": original, "target_id": "Q3"}
    names = ["Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II", "Forgetfulness"]
    return {
        "example_type": "popular",
        "edit": edit,
        "Relation_Specificity": [],
        **{key: [] for key in names},
        **criteria,
    }


def load(tmp_path, *records: dict):
    path = tmp_path / "ripple.json"
    path.write_text(json.dumps(records))
    return load_records(DatasetSettings(name="ripple", format="ripple", path=path))


@pytest.mark.parametrize(
    ("sentence", "relation", "template", "subject", "target"),
    [
        ("The name of the mother of Ada is Eve.", "MOTHER", "The name of the mother of {} is", "Ada", "Eve"),
        (
            "The name of the country of citizenship of Ada of Ur is Peru.", "COUNTRY_OF_CITIZENSHIP",
            "The name of the country of citizenship of {} is", "Ada of Ur", "Peru",
        ),
        (
            "The name of the director of The Lord of Ants is Bo.", "DIRECTOR",
            "The name of the director of {} is", "The Lord of Ants", "Bo",
        ),
        ("The place of birth of Ada is Ur D.C..", "PLACE_OF_BIRTH", "The place of birth of {} is", "Ada", "Ur D.C."),
        ("The names of the siblings of Ada are Bo.", "SIBLING", "The names of the siblings of {} are", "Ada", "Bo"),
        (
            "The name of the religion which Republic of Ur is associated with is Zen.", "RELIGION",
            "The name of the religion which {} is associated with is", "Republic of Ur", "Zen",
        ),
        ("The name of the award Ada won is Star.", "AWARD_RECEIVED", "The name of the award {} won is", "Ada", "Star"),
        ("The number of children Ada has is 3.", "NUMBER_OF_CHILDREN", "The number of children {} has is", "Ada", "3"),
        ("Ur is followed by Uruk.", "FOLLOWED_BY", "{} is followed by", "Ur", "Uruk"),
        ("Uruk follows Ur.", "FOLLOWS", "{} follows", "Uruk", "Ur"),
    ],
)  # fmt: skip
def test_subject_and_object_are_found_in_the_sentence(tmp_path, sentence, relation, template, subject, target):
    (found,) = load(tmp_path, record(sentence, relation))
    request = found.request
    assert (request.template, request.subject, request.target_new) == (template, subject, target)
    assert request.target_true is None
    assert f"{request.prompt} {request.target_new}." == sentence


def test_a_verb_in_a_name_is_told_by_the_true_fact_or_by_other_queries(tmp_path):
    sentence = "The name of the author of Love is all is Bo is me."
    with pytest.raises(InputError, match=r"Record 0 .*not clear what is subject and what is object.*'edit\.prompt'"):
        load(tmp_path, record(sentence, "AUTHOR"))
    original = "The name of the author of Love is all is Eve."
    asked = query("The name of the editor of Love is all is", "Una", subject_id="Q1")
    spelt = query("The one who wrote it is", "Bo is me", target_ids=["Q2"])
    for known in (
        record(sentence, "AUTHOR", original, Forgetfulness=[case(asked)]),
        record(sentence, "AUTHOR", Subject_Aliasing=[case(asked), case(spelt)]),
    ):
        (found,) = load(tmp_path, known)
        assert (found.request.subject, found.request.target_new) == ("Love is all", "Bo is me")
    (found,) = load(
        tmp_path, record("The name of the mother of Ada is Eve.", "MOTHER", "The name of the mother of Ada is Una.")
    )
    assert found.request.target_true == "Una"


def test_the_tests_of_a_record(tmp_path, caplog):
    condition = query("The name of the mother of Eve is", "Una")
    several = query("The names of the siblings of Ada are", "Bo", "Cy", aliases=("D", "Di"))
    criteria = {
        "Logical_Generalization": [case(several, query("Ada has", "2"), condition="AND", needs=(condition,))],
        "Compositionality_I": [
            case(query("", "Bo")),
            case(query("Ada", "")),
            case(query("Ada")),
            case(query("Ada", "X")),
        ],
        "Subject_Aliasing": [case(query("The mother of A. is", "Eve", aliases=("Eva",), target_ids=["Q2"]))],
    }
    (found,) = load(tmp_path, record("The name of the mother of Ada is Eve.", "MOTHER", **criteria))
    (one,) = found.sets["Logical_Generalization"]
    assert one.every
    assert [part.prompt for part in one.conditions] == [condition["prompt"]]
    assert one.questions[0].answers == (("Bo", "Di"), ("Cy", "Di")), "one letter says too little"
    assert one.questions[1].answers == (("2",),), "a digit does not"
    assert found.sets["Compositionality_I"] == ()
    assert "left out 4 tests" in caplog.text
    (alias,) = found.sets["Subject_Aliasing"]
    assert not alias.every
    ((fact,),) = (part.questions for part in found.sets["fact"])
    assert (fact.prompt, fact.answers) == ("The name of the mother of Ada is", (("Eve", "Eva"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": None}, "field 'edit' is missing"),
        ({"edit": {"relation": "MOTHER"}}, r"field 'edit\.prompt' is missing"),
        ({"edit": {"relation": "MOTHER", "prompt": "Ada was here."}}, "0 readings of 'Ada was here.'"),
        ({"Forgetfulness": {}}, "field 'Forgetfulness' is not a list of objects"),
        (
            {"Forgetfulness": [case(query("Ada", "Bo"), condition="XOR")]},
            r"field 'Forgetfulness\[0\]\.test_condition' is not known",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, message):
    good = record("The name of the mother of Ada is Eve.", "MOTHER")
    with pytest.raises(InputError, match=rf"(?s)Record 1 of .*ripple\.json.*{message}"):
        load(tmp_path, good, {**good, **change})
