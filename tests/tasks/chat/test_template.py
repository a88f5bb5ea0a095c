"""Texts in a chat template, with the special tokens that transformers would give them."""

from __future__ import annotations

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.chat.template import answer_start, end_of_turn, in_chat
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.model.checkpoint import open_checkpoint
from tests.chats import LLAMA_2, PLAIN

QUESTION = "Where was Mara Flousano born?"


@pytest.fixture
def tokenizer(llama_folder):
    """A tokenizer that adds a BOS, and has no chat template."""
    return open_checkpoint(llama_folder).load_tokenizer()


@pytest.mark.parametrize(("template", "bos"), [(LLAMA_2, 1), (PLAIN, 0)])
def test_special_tokens_are_those_that_the_template_writes(tokenizer, template, bos):
    tokenizer.chat_template = template
    tokens = encode_prompt(tokenizer, in_chat(tokenizer, QUESTION), special=False).tokens
    turns = [{"role": "user", "content": QUESTION}]
    assert list(tokens) == tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert tokens.count(tokenizer.bos_token_id) == bos
    assert encode_prompt(tokenizer, QUESTION).tokens.count(tokenizer.bos_token_id) == 1  # of a text of its own


@pytest.mark.parametrize(
    ("template", "start"),
    [(LLAMA_2, f"<s>[INST] {QUESTION} [/INST] "), (PLAIN, f"user: {QUESTION}</s>\nassistant: ")],
)
def test_an_answer_starts_and_ends_where_the_template_writes_it(tokenizer, template, start):
    tokenizer.chat_template = template
    assert in_chat(tokenizer, QUESTION) == (start.rstrip() if template is LLAMA_2 else start)
    assert answer_start(tokenizer, QUESTION) == start
    assert end_of_turn(tokenizer) == {tokenizer.eos_token_id}


def test_the_answer_and_the_subject_are_found(tokenizer):
    """Of "[/INST] Cairo", only the blank and the word are the answer."""
    tokenizer.chat_template = LLAMA_2
    start = answer_start(tokenizer, "Where was {} born?")
    encoded = encode_prompt(tokenizer, start, "Mara Flousano", "Cairo", "none", special=False)
    assert tokenizer.decode(encoded.labels).strip() == "Cairo"
    assert tokenizer.decode(encoded.tokens[encoded.first : encoded.lookup + 1]).strip() == "Mara Flousano"


def test_a_date_is_always_the_same(tokenizer):
    tokenizer.chat_template = "{{ date_string }} {{ messages[0].content }}"
    assert in_chat(tokenizer, "Q") == "26 Jul 2024 Q"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only tools') }}", "cannot be applied .* only tools"),
        ("{% for %}", "cannot be applied"),
        ("Hello", "leaves out the question"),
    ],
)
def test_a_template_that_cannot_ask_is_refused(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(InputError) as error:
        in_chat(tokenizer, QUESTION)
    assert error.match(r"(?s)" + message)
