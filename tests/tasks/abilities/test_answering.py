"""Answers by likelihood and by generation, compared with plain transformers."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.abilities.answering import SCHEMA, WAYS, first_label
from factsmith.tasks.abilities.task import load_tasks
from tests.conftest import load, load_plain

SST2, MMLU, COLA = load_tasks(["sst2", "mmlu", "cola"])
PROMPTS = ["Review :a fine film \nSentiment :", "Review :so dull\nSentiment :", "Review :hm\nSentiment :"]


@torch.no_grad()
def test_answers_are_what_transformers_says(gpt2_folder):
    """One pass of the whole text for each label, and transformers' own greedy generation."""
    decoder, plain = load(gpt2_folder), load_plain(gpt2_folder)
    tokenizer, done = decoder.tokenizer, []
    for task in (SST2, COLA):
        by_likelihood = WAYS["likelihood"].answer(decoder, task, PROMPTS, most_tokens=64, advance=done.append)
        by_generation = WAYS["generation"].answer(decoder, task, PROMPTS, most_tokens=64)
        for prompt, likely, generated in zip(PROMPTS, by_likelihood, by_generation, strict=True):
            start = tokenizer(prompt, return_tensors="pt")["input_ids"]
            nll = []
            for words in task.labels:
                tokens = tokenizer(f"{prompt} {words}", return_tensors="pt")["input_ids"]
                assert tokens[:, : start.shape[1]].equal(start)
                nll.append(float(plain(tokens, labels=torch.where(
                    torch.arange(tokens.shape[1]) < start.shape[1], -100, tokens)).loss))  # fmt: skip
            assert likely["nll"] == pytest.approx(nll, rel=1e-4)
            assert likely["answer"] == (0 if nll[0] < nll[1] else 1)
            whole = plain.generate(start, max_new_tokens=task.most_generated, do_sample=False, pad_token_id=0)
            text = tokenizer.decode(whole[0, start.shape[1] :], skip_special_tokens=True)
            assert generated["text"] == text
            assert generated["answer"] == first_label(text, task)
    assert sum(done) == 2 * len(PROMPTS) * WAYS["likelihood"].work(SST2)


def test_the_first_label_counts_as_whole_words():
    for text, answer in [
        (" positive", 1), (" Negative, not positive", 0), ("\nThis is POSITIVE.", 1), (" positively", None), ("", None),
        (" unnegative", None),
    ]:  # fmt: skip
        assert first_label(text, SST2) == answer
    for text, answer in [(" (B) because A", 1), (" b", None), (" D", 3), (" Dear", None), (" I take a C", 2)]:
        assert first_label(text, MMLU) == answer


def test_an_example_that_does_not_fit_is_not_asked(gpt2_folder):
    decoder, done = load(gpt2_folder), []
    for way in WAYS.values():
        done.clear()
        found = way.answer(decoder, SST2, [PROMPTS[0], "x" * 200], most_tokens=64, advance=done.append)
        assert [one["asked"] for one in found] == [True, False]
        assert sum(done) == 2 * way.work(SST2)
        assert set(found[0]) | {"example"} <= set(SCHEMA.names)


def test_a_model_that_overflows_answers_nothing(gpt2_folder):
    decoder = load(gpt2_folder)
    decoder.model.get_input_embeddings().weight.data[:] = float("nan")
    (found,) = WAYS["likelihood"].answer(decoder, SST2, PROMPTS[:1], most_tokens=64)
    assert (found["asked"], found["answer"]) == (True, None)
