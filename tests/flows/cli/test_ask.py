"""``factsmith ask``: the unedited and the edited model, side by side."""

from __future__ import annotations

import json

import pytest

PROMPT = "Mara Flousano speaks"


@pytest.fixture
def edited(ran, factsmith, plain_flows, arguments):
    result = factsmith("run", *arguments("dataset.batches=2", "dataset.metrics=[counterfact]"))
    assert result.code == 0, result


def asked(result):
    assert result.code == 0, result
    return json.loads(result.out)


def test_both_models_are_asked(factsmith, edited, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"\ufeff{PROMPT}\n\nIvo\n")
    found = asked(factsmith("ask", "latest", "Mara", "--prompts", file, "--batch", 2, "--likeliest", 2, "--json"))
    assert found["edit"].startswith("edit/")
    assert [one["prompt"] for one in found["answers"]] == ["Mara", PROMPT, "Ivo"]
    for one in found["answers"]:
        assert len(one["unedited"]["likeliest"]) == len(one["edited"]["likeliest"]) == 2
        assert one["unedited"]["likeliest"] != one["edited"]["likeliest"]
    shown = factsmith("ask", "latest", PROMPT, "--batch", 2).out
    assert all(word in shown for word in (PROMPT, "unedited", "edited", "%"))


def test_which_edit_is_never_guessed(factsmith, edited):
    for more, message in (([], "2 edits, because its batches are independent"), (["--batch", 3], "no edit of batch 3")):
        result = factsmith("ask", "latest", PROMPT, *more)
        assert result.code == 2
        assert message in result.err
        assert "1 (3 facts), 2 (3 facts)" in result.err


def test_a_model_alone(factsmith, gpt2_folder):
    found = asked(factsmith("ask", gpt2_folder, PROMPT, "--tokens", 1, "--json"))
    assert set(found["answers"][0]) == {"prompt", "answer"}
    assert found["edit"] is None


def test_a_model_with_a_memory_is_asked_with_it_and_without(factsmith, plain_flows, arguments, tmp_path):
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([{"subject": "Mara Flousano", "prompt": "{} speaks", "target_new": "Spanish"}]))
    given = [
        one
        for one in arguments("method=grace", "method.layers=[1]")
        if not one.startswith(("dataset", "method.batch_size"))
    ]
    assert factsmith("edit", facts, *given, "--out", tmp_path / "edited").code == 0
    (answer,) = asked(factsmith("ask", tmp_path / "edited", PROMPT, "--json"))["answers"]
    assert set(answer) == {"prompt", "unedited", "edited"}
    assert answer["unedited"] != answer["edited"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["embedded"], "There is nothing to ask."),
        (["embeded", PROMPT], "embedded"),
        (["embedded", PROMPT, "--batch", 1], "--batch chooses an edit of a run."),
        (["embedded", PROMPT, "--chat"], "no chat template"),
        (["embedded", PROMPT, "runtime.nothing=1"], "runtime.nothing"),
        (["latest", PROMPT], "There are no runs"),
        (["embedded", "a\udcff"], "Prompt 1 is not Unicode text"),
        (["embedded", "--prompts", "missing.txt"], "missing.txt cannot be read"),
    ],
)
def test_what_cannot_be_asked(refused, given, message):
    assert message in refused("ask", *given)
