"""Replies, compared with those of transformers."""

from __future__ import annotations

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.ask.replies import encode_prompts, replies
from tests.chats import PLAIN
from tests.conftest import load, load_plain

PROMPTS = ["Mara", "Mara Flousano speaks the language of", "Ivo works"]


def test_replies_are_those_of_transformers(model_folder):
    decoder, plain = load(model_folder), load_plain(model_folder)
    encoded = encode_prompts(decoder.tokenizer, PROMPTS, chat=False, context_length=decoder.context_length)
    found = replies(decoder, encoded, tokens=5, likeliest=4, most_tokens=64)
    for tokens, reply in zip(encoded, found, strict=True):
        inputs = torch.tensor([tokens])
        likeliest = plain(inputs).logits[0, -1].softmax(-1).topk(4)
        assert [one.probability for one in reply.likeliest] == pytest.approx(likeliest.values.tolist(), rel=1e-4)
        whole = plain.generate(inputs, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(inputs))
        text = decoder.tokenizer.decode(whole[0], skip_special_tokens=True)
        assert text == decoder.tokenizer.decode(tokens, skip_special_tokens=True) + reply.continuation
        assert reply.likeliest[0].text in (reply.continuation[: len(reply.likeliest[0].text)], "<eos>", "<|endoftext|>")


@pytest.mark.parametrize("prompt", ["", "word " * 500])
def test_a_prompt_that_leaves_no_room_is_refused(gpt2_folder, prompt):
    decoder = load(gpt2_folder)
    with pytest.raises(InputError, match="Prompt 2 "):
        encode_prompts(decoder.tokenizer, ["Mara", prompt], chat=False, context_length=decoder.context_length)


def test_a_chat_prompt_is_what_the_template_makes_of_it(llama_folder):
    decoder = load(llama_folder)
    decoder.tokenizer.chat_template = PLAIN
    (found,) = encode_prompts(decoder.tokenizer, ["Who?"], chat=True, context_length=decoder.context_length)
    turns = [{"role": "user", "content": "Who?"}]
    assert list(found) == decoder.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
