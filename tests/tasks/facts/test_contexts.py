"""Context templates."""

from __future__ import annotations

import json

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.facts.activations import FactActivations
from factsmith.tasks.facts.contexts import ChatContext, chat_contexts, in_context, read_contexts, sample_contexts
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import ContextSample, ContextSettings
from factsmith.tasks.facts.stage import context_series
from factsmith.tasks.model.model import Fingerprint
from tests.chats import LLAMA_2, PLAIN

STARTS = ("The", "Because", "I")
SAMPLES = [ContextSample(start=start, length=10) for start in STARTS]


def test_the_same_seed_gives_the_same_templates(decoder):
    torch.manual_seed(0)
    first = sample_contexts(decoder, SAMPLES, seed=3)
    torch.manual_seed(1)
    assert sample_contexts(decoder, SAMPLES, seed=3) == first
    assert sample_contexts(decoder, SAMPLES, seed=4) != first


def test_templates_start_as_they_should_and_hold_one_prompt(decoder):
    clean, *prefixed = sample_contexts(decoder, SAMPLES, seed=0)
    assert clean == "{}"
    assert len(prefixed) == len(STARTS)
    for start, template in zip(STARTS, prefixed, strict=True):
        assert template.startswith(start)
        assert template.endswith(". {}")
        assert template.count("{") == template.count("}") == 1
        assert "<s>" not in template


def test_several_prefixes_of_one_kind_are_drawn_apart(decoder):
    samples = [ContextSample(start="The", length=5, count=4), ContextSample(start="You", length=8, count=2)]
    _, *prefixed = sample_contexts(decoder, samples, seed=0)
    assert [template.split()[0][:3] for template in prefixed] == ["The"] * 4 + ["You"] * 2
    assert len(set(prefixed)) > 4


def test_the_global_generator_is_left_alone(decoder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample_contexts(decoder, SAMPLES, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_given_templates_are_read_clean_one_first(tmp_path):
    path = tmp_path / "contexts.json"
    path.write_text(json.dumps(["Well. {}", "{}"]))
    assert read_contexts(path) == ("{}", "Well. {}")


@pytest.mark.parametrize("content", ["[]", "{}", '["no place"]', '["{} and {}"]', "[1]", "not json"])
def test_unusable_templates_are_refused(tmp_path, content):
    path = tmp_path / "contexts.json"
    path.write_text(content)
    with pytest.raises(InputError):
        read_contexts(path)


FACT = EditRequest(1, "Mara Flousano", "{} was born in", "Cairo", question="Where was {} born?")


@pytest.mark.parametrize(
    ("template", "said", "asked"),
    [
        (PLAIN, "user: Tell me a fact.</s>\nassistant: {} was born in", "user: Where was {} born?</s>\nassistant: "),
        (LLAMA_2, "<s>[INST] Tell me a fact. [/INST] {} was born in", "<s>[INST] Where was {} born? [/INST] "),
    ],
)
def test_a_chat_says_the_prompt_or_asks_the_question(decoder, template, said, asked):
    tokenizer = decoder.tokenizer
    tokenizer.chat_template = template
    first, *others = chat_contexts(tokenizer)
    assert in_context(first, FACT).template == said
    assert in_context(others[-3], FACT).template == asked
    assert "Answer with the name only." in in_context(others[-1], FACT).template
    without = EditRequest(1, FACT.subject, FACT.template, FACT.target_new)
    assert in_context(others[-3], without).template.endswith(FACT.template)
    for context, before in ((first, "was born in"), (others[-3], asked[-5:])):
        encoded = in_context(context, FACT).encode(tokenizer, FACT.subject, FACT.target_new)
        assert tokenizer.decode(encoded.labels).strip() == "Cairo"
        assert tokenizer.decode(encoded.inputs[: 1 - encoded.continued or None]).strip().endswith(before.strip())
        assert tokenizer.decode(encoded.tokens[encoded.first : encoded.lookup + 1]).strip() == FACT.subject
        assert encoded.tokens.count(tokenizer.bos_token_id) == asked.count("<s>")


def test_a_prompt_and_a_question_have_a_key_each(decoder):
    """The mean over contexts, in which the clean prompt weighs one half, and the mean over the ways of asking."""
    decoder.tokenizer.chat_template = PLAIN
    contexts = ("{}", "Well. {}", *chat_contexts(decoder.tokenizer))
    plain = EditRequest(2, "Ena Covus", "{} speaks", "Danish")
    activations = FactActivations(decoder, [plain, FACT, plain], contexts, clean_weight=0.5)
    assert activations.owners == [0, 1, 2, 1]
    averaged, clean = activations.keys(1)
    said = [f"user: {one}</s>\nassistant: {{}} was born in" for one in ("Tell me a fact.", "What do you know?")]
    asked = ["{}", "Answer briefly. {}", "{} Answer with the name only."]
    asked = [f"user: {one.format('Where was {} born?')}</s>\nassistant: " for one in asked]
    texts = [("{} was born in", True), ("Well. {} was born in", True), *((text, False) for text in (*said, *asked))]
    keys = []
    for text, special in texts:
        tokens = encode_prompt(decoder.tokenizer, text, FACT.subject, special=special)
        seen: list[torch.Tensor] = []
        with decoder.tapped([1], lambda _, keys, seen=seen: seen.append(keys), stop=True):
            decoder.run(decoder.embed(torch.tensor([tokens.tokens])), 0, 2)
        keys.append(seen[0][0, tokens.lookup].double())
    wanted = [keys[0], keys[0] / 2 + sum(keys[1:4]) / 6, keys[4], sum(keys[4:]) / 3]
    for found, key in zip((clean[:, 1], averaged[:, 1], clean[:, 3], averaged[:, 3]), wanted, strict=True):
        torch.testing.assert_close(found, key, rtol=1e-5, atol=1e-6)
    alone = FactActivations(decoder, [plain], contexts, clean_weight=0.5)
    assert alone.owners == [0]
    torch.testing.assert_close(alone.keys(1)[0][:, 0], averaged[:, 0], rtol=1e-5, atol=1e-6)


def test_chats_and_questions_are_part_of_the_names_and_nothing_else_is():
    model, chat = Fingerprint("w", "t", "float32", "eager"), [ChatContext("a: {}", "b: {}")]
    settings = ContextSettings()
    plain = context_series(model, settings, None)
    assert plain.parameters.keys() == {"seed", "samples", "top_k", "dtype", "attention"}
    assert context_series(model, settings, ["{}"]).parameters == {"templates": ["{}"]}
    both, other = (context_series(model, settings, None, one) for one in (chat, [ChatContext("a: {}")]))
    assert len({plain.digest, both.digest, other.digest}) == 3

    without = EditRequest(1, FACT.subject, FACT.template, FACT.target_new)
    assert FACT.fact_digest == without.fact_digest == without.digest != FACT.digest
