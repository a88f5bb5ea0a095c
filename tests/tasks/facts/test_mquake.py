"""MQuAKE: instances of several edits, which stay together, and their questions."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.batches import FactBatches, fact_digests
from factsmith.tasks.facts.selection import select_records
from factsmith.tasks.facts.settings import DatasetSettings


def edit(subject: str, prompt: str, new: str, true: str, relation: str) -> dict:
    return {
        "prompt": prompt, "relation_id": relation, "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"}, "subject": subject, "question": f"What about {subject}?",
    }  # fmt: skip


def instance(number: int, name: str, city: str = "Oslo", *, country: str = "Norway") -> dict:
    """Two edits, of a person and of a country, and a hop between them that is not edited."""
    hops = [
        {"question": f"Where does {name} live?", "cloze": f"{name} lives in", "answer": country, "answer_alias": []},
        {
            "question": f"Who rules {country}?",
            "cloze": f"{country} is ruled by",
            "answer": "Bo",
            "answer_alias": ["B."],
        },
        {"question": "Where was Bo born?", "cloze": "Bo was born in", "answer": city, "answer_alias": ["The Town"]},
    ]
    return {
        "case_id": number,
        "requested_rewrite": [
            edit(name, "{} lives in", country, "Peru", "P1"), edit("Bo", "{} was born in", city, "Lima", "P2"),
        ],
        "questions": [f"In which city was the ruler of the home of {name} born?"] * 3,
        "answer": "Lima", "answer_alias": [], "new_answer": city, "new_answer_alias": ["The Town"],
        "single_hops": [], "new_single_hops": hops, "orig": {},
    }  # fmt: skip


def settings(tmp_path, *instances: dict, **given) -> DatasetSettings:
    path = tmp_path / "mquake.json"
    path.write_text(json.dumps(instances))
    return DatasetSettings(**{"name": "mquake", "format": "mquake", "path": path, "batches": None, **given})


def test_the_first_record_of_an_instance_has_its_questions(tmp_path):
    first, second = select_records(settings(tmp_path, instance(7, "Ada")))
    assert [one.request.prompt for one in (first, second)] == ["Ada lives in", "Bo was born in"]
    assert [one.request.target_true for one in (first, second)] == ["Peru", "Lima"]
    assert (first.request.case_id, second.request.case_id) == (7, 7)
    assert (first.prompts["paraphrase"], first.relation) == (("What about Ada?",), "P1")
    assert (first.question, first.prompts["question"]) == ("What about {}?", ("What about Ada?",))
    assert set(second.sets) == {"edit"}
    ((recalled,),) = (one.questions for one in second.sets["edit"])
    assert (recalled.prompt, recalled.answers, recalled.is_question) == (
        "Bo was born in", (("Oslo", "The Town"),), False,
    )  # fmt: skip
    (hops,), (multi_hop,) = first.sets["hops"], first.sets["multi_hop"]
    assert (hops.every, multi_hop.every) == (True, False)
    assert [(one.prompt, one.is_question) for one in hops.questions] == [
        ("Ada lives in", False), ("Who rules Norway?", True), ("Bo was born in", False),
    ]  # fmt: skip
    assert hops.questions[1].answers == (("Bo", "B."),)
    assert [(one.answers, one.is_question) for one in multi_hop.questions] == [((("Oslo", "The Town"),), True)] * 3


@pytest.mark.parametrize("size", [1, 2, 3, "all"])
def test_batches_never_cut_an_instance(tmp_path, size):
    given = settings(tmp_path, *(instance(number, f"Name{number}") for number in range(7)), seed=3)
    batches = FactBatches.select(select_records(given), given, size, in_sequence=False, evaluate_at=None).batches
    instances = [{record.group for record in batch} for batch in batches]
    assert sum(map(len, instances)) == len(set.union(*instances)) == 7
    assert [len(one) for one in instances][:-1] == [7 if size == "all" else size] * (len(batches) - 1)
    for batch in batches:
        assert set(Counter(record.group for record in batch).values()) == {2}
        # All instances move Bo to Oslo. It is written once, and the others share it.
        assert len(fact_digests(batch)) == len({record.group for record in batch}) + 1
    assert len({record.fact for batch in batches for record in batch}) == 14


def test_an_instance_is_chosen_and_counted_as_one(tmp_path):
    instances = [instance(number, f"Name{number}") for number in range(6)]
    cases = select_records(settings(tmp_path, *instances, cases=[4, 1], seed=None))
    assert [record.request.case_id for record in cases] == [4, 4, 1, 1]
    half = select_records(settings(tmp_path, *instances, split="test", seed=None))
    assert [record.request.case_id for record in half] == [1, 1, 3, 3, 5, 5]
    assert len(select_records(settings(tmp_path, *instances, limit=2))) == 4
    few = settings(tmp_path, *instances, batches=4)
    with pytest.raises(InputError, match="has 6 instances for 4 batches of 2"):
        FactBatches.select(select_records(few), few, 2, in_sequence=False, evaluate_at=None)


def test_an_instance_that_contradicts_an_earlier_one_is_dropped_whole(tmp_path, caplog):
    instances = [instance(0, "Ada"), instance(1, "Ulf", "Bergen"), instance(2, "Una")]
    records = select_records(settings(tmp_path, *instances, seed=None))
    assert [record.request.case_id for record in records] == [0, 0, 2, 2]
    assert "dropped 1 of 3 instances" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requested_rewrite": []}, "field 'requested_rewrite' is missing or empty"),
        ({"requested_rewrite": ["Ada"]}, "field 'requested_rewrite' is not a list of objects"),
        ({"requested_rewrite": [{"subject": "Ada"}]}, r"field 'requested_rewrite\[0\]\.prompt' is missing"),
        ({"new_single_hops": [{"cloze": "a", "question": "b"}]}, r"field 'new_single_hops\[0\]\.answer' is missing"),
        ({"questions": []}, "field 'questions' is missing or empty"),
        ({"new_answer": ""}, "field 'new_answer' is empty"),
    ],
)
def test_a_bad_instance_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"Record 1 of .*mquake\.json.*{message}"):
        select_records(settings(tmp_path, instance(0, "Ada"), {**instance(1, "Ulf"), **change}))
