"""Where settings come from, and arguments that give the same settings again."""

from __future__ import annotations

import pytest

from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.origins import DEFAULT, GIVEN, arguments_of, origins


def test_a_setting_is_given_or_comes_from_a_choice_or_is_a_default():
    found = origins(compose(["method=emmet", "method.slack=0.5", "method.value.steps=40"]))
    assert found["method.slack"] == GIVEN
    assert found["method.value.steps"] == "model=embedded", "it was given what the choice says"
    assert found["method.slack_of_one"] == "method=emmet"
    assert found["dataset.split"] == "dataset=embedded"
    assert found["method.ridge"] == DEFAULT
    assert not {"trace.noise", "corpus.path"} & found.keys(), "not read"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["method=alphaedit-f", "method.sequence.history=full", "method.sequence.evaluate_at=[1,2]"],
        ["method=memit", "corpus.dynamic_multiplier=auto", "dataset.metrics=[counterfact,greedy]", "dataset.limit=7"],
        ["model=gpt2-xl", "corpus=local", "corpus.path=/a b/c", "dataset.path=/f.json", "method.batch_size=all"],
        ["model.name='a: \"b\" # $c'", "corpus.seed=3"],
    ],
)
def test_arguments_give_the_same_settings_again(words):
    settings = compose(words)
    found = arguments_of(settings)
    assert found is not None
    assert compose(found) == settings


def test_arguments_are_short():
    assert arguments_of(compose(["method.batch_size=4"])) == ["model=embedded", "method=memit", "method.batch_size=4"]


def test_a_choice_that_is_a_file_is_written_out(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\npreservation: full\nslack: 0.25\nspread: square_root\n")
    settings = compose([f"method={file}"])
    assert compose(arguments_of(settings)) == settings
