"""Records in the layouts of EasyEdit and KnowEdit."""

from __future__ import annotations

import json

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.selection import load_records
from factsmith.tasks.facts.settings import DatasetSettings

PLAIN = {"subject": "Ena Covus", "prompt": "Ena Covus speaks", "target_new": "Spanish", "ground_truth": "French"}
ASKED = {
    "paraphrase": ("The language of Ena Covus is",),
    "neighborhood": ("Ilo Staidel speaks", "Ilo Staidel lives in"),
    "portability": ("Ena Covus lives where people speak",),
}
ANSWERS = {"neighborhood": ("German", "Bonn"), "portability": ("Spanish",)}

NESTED = {
    **PLAIN,
    "rephrase_prompt": ASKED["paraphrase"][0],
    "locality": {
        "Relation_Specificity": [{"prompt": "Ilo Staidel speaks", "ground_truth": [["German", "Deutsch"]]}],
        "Forgetfulness": [{"prompt": "Ilo Staidel lives in", "ground_truth": "Bonn"}],
    },
    "portability": {"Reasoning": [{"prompt": ASKED["portability"][0], "ground_truth": ["Spanish"]}]},
}
PARALLEL = {
    **PLAIN,
    "ground_truth": ["French"],
    "rephrase": ["The language of {} is"],
    "locality_inputs": {"neighborhood": {"prompt": list(ASKED["neighborhood"]), "ground_truth": ["German", ["Bonn"]]}},
    "portability_inputs": {"one_hop": {"prompt": ASKED["portability"][0], "ground_truth": "Spanish"}},
}
FLAT = {
    **PLAIN,
    "rephrase_prompts": [ASKED["paraphrase"][0]],
    "locality_prompt": list(ASKED["neighborhood"]),
    "locality_ground_truth": ["German", "Bonn"],
    "portability_prompt": ASKED["portability"][0],
    "portability_ground_truth": "Spanish",
}


def easyedit(tmp_path, *records) -> DatasetSettings:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    return DatasetSettings(name="easyedit", format="easyedit", path=path, seed=None, batches=None)


@pytest.mark.parametrize("fields", [NESTED, PARALLEL, FLAT], ids=["nested", "parallel", "flat"])
def test_every_layout_says_the_same(tmp_path, fields):
    (record,) = load_records(easyedit(tmp_path, fields))
    assert (record.request.template, record.request.target_new) == ("{} speaks", "Spanish")
    assert record.request.target_true == "French"
    assert dict(record.prompts) == {"rewrite": ("Ena Covus speaks",), **ASKED}
    assert dict(record.answers) == ANSWERS


def test_what_is_not_given_is_not_asked(tmp_path):
    empty = {**PLAIN, "ground_truth": "<|endoftext|>", "locality": {"a": [], "b": None}, "portability": {}}
    unanswered = {**PLAIN, "ground_truth": None, "locality": {"a": [{"prompt": "Ilo speaks", "ground_truth": [[]]}]}}
    for fields in (empty, unanswered):
        (record,) = load_records(easyedit(tmp_path, fields))
        assert record.request.target_true is None
        assert not any(record.prompts[kind] for kind in ("paraphrase", "neighborhood", "portability"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"locality": ["Ilo speaks"]}, "field 'locality' is not an object of named parts"),
        ({"locality": {"a": "Ilo speaks"}}, r"field 'locality\.a' does not hold prompts with answers"),
        ({"locality_prompt": ["a", "b"], "locality_ground_truth": ["c"]}, "'locality_prompt' has 2 prompts"),
        ({"locality": {"a": {"prompt": "", "ground_truth": "c"}}}, r"a prompt of field 'locality\.a' is empty"),
        (
            {"portability": {"a": {"prompt": "b", "ground_truth": 5}}},
            r"an answer of field 'portability\.a' is not text",
        ),
        ({"target_new": ""}, "field 'target_new' is empty"),
        ({"rephrase": 5}, "field 'rephrase' is not text"),
        ({"rephrase_promt": "b"}, "field 'rephrase_promt' is not known"),
    ],
)
def test_a_bad_record_is_named(tmp_path, fields, message):
    with pytest.raises(InputError, match=rf"Record 1 of .*records\.json.*{message}"):
        load_records(easyedit(tmp_path, PLAIN, {**PLAIN, **fields}))


def test_such_a_record_as_a_plain_fact_names_what_is_not_read(tmp_path, caplog):
    load_records(easyedit(tmp_path, NESTED).model_copy(update={"format": "facts", "name": "facts"}))
    (message,) = caplog.messages
    assert "'ground_truth', 'rephrase_prompt', 'locality'" in message
    assert message.endswith("; dataset=easyedit does")


def test_knowedit_asks_every_part(tmp_path):
    """WikiData counterfact and recent: three parts of portability, two of locality, and answers that are lists."""
    fields = {
        **PLAIN,
        "portability": {
            "Logical_Generalization": [
                {"prompt": "Those who speak Spanish are", "ground_truth": [["Ena", "E."], ["Ilo"]]}
            ],
            "Reasoning": [{"prompt": "Ena's country is", "ground_truth": ["Spain"]}],
            "Subject_Aliasing": [{"prompt": "E. Covus speaks", "ground_truth": "Spanish"}],
        },
        "locality": {
            "Relation_Specificity": [{"prompt": "Ena Covus was born in", "ground_truth": [["Bonn"]]}],
            "Forgetfulness": [{"prompt": "Ena Covus also speaks", "ground_truth": [["Danish", "Dansk"], ["Dutch"]]}],
        },
    }
    (record,) = load_records(easyedit(tmp_path, fields))
    assert dict(zip(record.prompts["portability"], record.answers["portability"], strict=True)) == {
        "Those who speak Spanish are": "Ena", "Ena's country is": "Spain", "E. Covus speaks": "Spanish",
    }  # fmt: skip
    assert dict(zip(record.prompts["neighborhood"], record.answers["neighborhood"], strict=True)) == {
        "Ena Covus was born in": "Bonn", "Ena Covus also speaks": "Danish",
    }  # fmt: skip


def test_wikibio_has_other_names(tmp_path, caplog):
    fields = {
        "concept": "ena covus", "text": "A passage about ena covus. Ena Covus (born 1900)", "labels": "She was a poet.",
        "locality": {"Relation_Specificity": [{"prompt": "The sister of Ena Covus is", "ground_truth": ["Ida"]}]},
    }  # fmt: skip
    (record,) = load_records(easyedit(tmp_path, fields))
    assert record.request.template == "A passage about {}. Ena Covus (born 1900)"
    assert (record.request.subject, record.request.target_new) == ("ena covus", "She was a poet.")
    assert record.answers["neighborhood"] == ("Ida",)
    assert not caplog.messages


@pytest.mark.parametrize(
    "fields",
    [
        {"K_F": [{"question": "Who sang it?", "target_new": "I do not know."}], "K_R": []},
        {"topic": "rain", "pos": ["It is lovely."], "neg": ["It is wet."]},
    ],
    ids=["Sanitation", "ConvSent"],
)
def test_parts_of_knowedit_without_a_subject_are_refused(tmp_path, fields):
    with pytest.raises(InputError, match="(?s)field 'subject' is missing.*ConvSent and Sanitation"):
        load_records(easyedit(tmp_path, fields))
