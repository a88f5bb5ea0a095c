"""Where subjects end and continuations begin, with and without a BOS."""

from __future__ import annotations

import pytest

from factsmith.tasks.models.text import encode_prompt

CASES = [
    ("{} was born in", "Mara Flousano"),
    ("The mother tongue of {} is", "Mara Flousano"),
    ("Some words first. The sport that {} practises is", "Émile Zöl"),
    ("The home town of {}", "New York"),
    ("{}", "x"),
    ("The name '{}' is", "Ann-Marie O'Neil Jr."),
]


@pytest.fixture(params=["gpt2", "llama"])
def tokenizer(request):
    from tests.conftest import load

    return load(request.getfixturevalue(f"{request.param}_folder")).tokenizer


@pytest.mark.parametrize(("template", "subject"), CASES)
def test_the_lookup_token_is_the_last_of_the_text_up_to_the_subject(tokenizer, template, subject):
    prompt = encode_prompt(tokenizer, template, subject)
    upto = template[: template.index("{}")] + subject
    assert prompt.lookup == len(tokenizer(upto)["input_ids"]) - 1
    assert list(prompt.tokens) == tokenizer(template.replace("{}", subject))["input_ids"]
    assert prompt.inputs == prompt.tokens
    assert prompt.continued == 0


@pytest.mark.parametrize(("template", "subject"), CASES)
@pytest.mark.parametrize("target", ["Paris", " Paris", "New York", "Zürich", "x"])
def test_a_continuation_is_what_comes_behind_the_prompt(tokenizer, template, subject, target):
    prompt = encode_prompt(tokenizer, template, subject, target)
    text = f"{template.replace('{}', subject)} {target.strip()}"
    assert list(prompt.tokens) == tokenizer(text)["input_ids"]
    assert tokenizer.decode(prompt.labels).strip() == target.strip()
    assert prompt.inputs == prompt.tokens[:-1]
    assert prompt.lookup == encode_prompt(tokenizer, template, subject).lookup


def test_a_subject_with_braces_stays_itself(tokenizer):
    prompt = encode_prompt(tokenizer, "The set {} is", "{a, b}")
    assert tokenizer.decode(prompt.tokens, skip_special_tokens=True) == "The set {a, b} is"


def test_real_tokenizer_of_gpt2(shared):
    from transformers import GPT2TokenizerFast

    folder = shared / "data" / "gpt2_tokenizer"
    tokenizer = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    prompt = encode_prompt(tokenizer, "The mother tongue of {} is", "Danielle Darrieux", "English")
    assert tokenizer.decode([prompt.tokens[prompt.lookup]]) == "ux"
    assert tokenizer.decode(prompt.labels) == " English"
