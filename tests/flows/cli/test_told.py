"""What commands tell about what happened: answers of edited facts, and the numbers that scores rest on."""

from __future__ import annotations

import json
import shutil

import pytest

from factsmith.flows.reporting.terminal import answer_lines
from factsmith.tasks.decoder.generation import continuations, end_tokens
from factsmith.tasks.evaluation.answers_stage import Answer
from tests.chats import PLAIN
from tests.flows.cli.test_cli import FACT, facts_file
from tests.runs import last_of_each


@pytest.fixture
def given(arguments):
    return [word for word in arguments() if not word.startswith(("dataset", "method.batch_size"))]


def test_edit_tells_what_each_fact_is_answered_with(factsmith, precomputed, plain_flows, given, tmp_path):
    facts = facts_file(tmp_path, FACT, {**FACT, "subject": "Ilo", "prompt": "The sport of Ilo is"})
    stronger = ["method.value.steps=25", "method.value.clamp=20", "method.preservation_weight=0.001"]
    strong = last_of_each(*given, *stronger)
    document = json.loads(factsmith("edit", facts, *strong, "--out", tmp_path / "edited", "--json").out)
    answers = document["answers"]
    assert {one["prompt"] for one in answers} == {"Mara Flousano speaks", "The sport of Ilo is"}
    for one in answers:
        assert one["holds"] <= one["after"].strip().startswith(FACT["target_new"])
        assert not one["before"].strip().startswith(FACT["target_new"])
        assert not one["held"]
    assert [stage["name"] for stage in document["stages"]][-2:] == ["answers", "export"]
    about = json.loads((tmp_path / "edited" / "factsmith.json").read_text())
    held = sum(one["holds"] for one in answers)
    assert about["scores"] == {"facts": 2, "facts_held": held, "facts_held_before": 0}
    assert (about["method"], about["settings"]["method"]["value"]["steps"]) == ("memit", 25)
    assert about["model"]
    assert "transformers" in about["versions"]
    again = json.loads(factsmith("edit", facts, *strong, "--json").out)
    assert again["answers"] == answers
    assert {stage["state"] for stage in again["stages"]} == {"cached"}


def test_the_answers_are_those_of_the_edited_checkpoint(factsmith, precomputed, plain_flows, given, tmp_path):
    from factsmith.tasks.model.checkpoint import open_checkpoint

    facts = facts_file(tmp_path, FACT)
    (answer,) = json.loads(factsmith("edit", facts, *given, "--out", tmp_path / "edited", "--json").out)["answers"]
    checkpoint = open_checkpoint(tmp_path / "edited")
    decoder = checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu")
    prompt = decoder.tokenizer("Mara Flousano speaks")["input_ids"]
    (generated,) = continuations(decoder, [tuple(prompt)], [len(prompt) + 5], most_tokens=256, ends=end_tokens(decoder))
    assert answer["after"].startswith(decoder.tokenizer.decode(generated).rstrip("\ufffd"))


def test_a_fact_is_written_and_asked_in_a_chat(factsmith, plain_flows, given, gpt2_folder, tmp_path):
    folder = tmp_path / "chatty"
    shutil.copytree(gpt2_folder, folder)
    questions = ["Which language does {} speak?", "What is the language of {}?"]
    facts = facts_file(tmp_path, {**FACT, "target_true": "French", "questions": questions}, {**FACT, "subject": "Ilo"})
    chatty = last_of_each(*given, f"model.path={folder}", "method.contexts=both", "method.context_seed=1")
    refused = factsmith("edit", facts, *chatty)
    assert refused.code == 2
    assert "no chat template" in refused.err
    assert "method.contexts" in refused.err

    (folder / "chat_template.jinja").write_text(PLAIN)
    document = json.loads(factsmith("edit", facts, *chatty, "--json").out)
    assert len(json.loads(next((tmp_path / "home").glob("artifacts/contexts/*/*/templates.json")).read_text())) == 11
    asked, plain = sorted(document["answers"], key=lambda one: one["chat"] is None)
    assert asked["chat"]["question"] == "Which language does Mara Flousano speak?"
    assert asked["chat"]["after"] is not None
    assert plain["chat"] is None
    assert "facts hold in a chat" in factsmith("edit", facts, *chatty).out
    scored = json.loads(factsmith("evaluate", facts, *chatty, "dataset.metrics=[chat]", "--json").out)
    assert scored["records"] == {"ChatEff": 1, "ChatGen": 1, "ChatSpe": 0, "ChatH": 0}
    assert {one["name"]: one["state"] for one in scored["stages"]}["edit"] == "cached"
    alone = last_of_each(*chatty[:-1], "method.contexts=chat")
    assert "method.context_seed" in factsmith("edit", facts, *alone, "method.context_seed=1").err
    assert json.loads(factsmith("plan", *alone, "dataset=facts", f"dataset.path={facts}", "--json").out)


def test_a_table_tells_how_many_facts_hold(factsmith, precomputed, plain_flows, given, tmp_path):
    out = factsmith("edit", facts_file(tmp_path, FACT), *last_of_each(*given, "method.value.steps=1")).out
    assert "0 of 1 facts hold" in out
    assert "the model does not know the object" in out


def test_few_facts_that_hold_are_explained():
    def answers(held, of):
        return [Answer(case, "a", "b", "c", "b" if case < held else "c", case < held) for case in range(of)]

    assert len(list(answer_lines(answers(10, 10)))) == 1
    assert "10 of 10 facts hold" in next(answer_lines(answers(10, 10)))
    assert "factsmith locate" in list(answer_lines(answers(3, 10)))[1]
    known = [Answer(1, "a", "b", "b", "b", holds=True, held=True), *answers(1, 1)]
    assert list(answer_lines(known))[1:] == ["1 of them the unedited model gave already."]


def test_scores_tell_how_many_records_they_rest_on(factsmith, precomputed, plain_flows, given, tmp_path):
    scored = {**FACT, "target_true": "French", "paraphrase_prompts": ["The language of Mara Flousano is"]}
    others = [{**FACT, "subject": name} for name in ("Ilo", "Ena")]
    facts = facts_file(tmp_path, scored, *others)
    document = json.loads(factsmith("evaluate", facts, *given, "--json").out)
    assert {name: document["records"][name] for name in ("ES", "PS", "Eff*", "NS", "S")} == {
        "ES": 1, "PS": 1, "Eff*": 3, "NS": 0, "S": 0
    }  # fmt: skip
    low, high = document["intervals"]["Eff*"]
    assert low <= document["metrics"]["after"]["Eff*"] <= high
    assert "95 %" in factsmith("evaluate", facts, *given).out
    assert "    3 │" in factsmith("runs").out


def test_the_version_and_one_section_of_the_settings(factsmith, refused):
    assert factsmith("--version").out.startswith("factsmith ")
    section = factsmith("conf", "method.value", "method=rome").out
    assert "method.value.site" in section
    assert "mlp" in section
    assert "corpus" not in section
    assert "method=memit" in factsmith("conf", "choices").out
    assert "did you mean 'method'" in refused("conf", "metod")


def test_the_store_lists_stages_and_dates(factsmith, plain_flows, arguments):
    factsmith("run", *arguments())
    out = factsmith("store", "ls").out
    assert "evaluation" in out
    assert "scores" in out
    assert f"{json.loads(factsmith('store', 'ls', '--json').out)[0]['created'][:4]}-" in out
