"""Requests that the model cannot take are refused before anything is computed."""

from __future__ import annotations

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.values.checks import check_requests
from factsmith.tasks.values.optimiser import optimise_values
from factsmith.tasks.values.settings import ValueSettings


def request(words: int) -> EditRequest:
    return EditRequest(5, "Mara Flousano", "{}" + " is" * words, "Danish")


def inputs(decoder, words: int, template: str) -> int:
    one = request(words)
    text = template.replace("{}", one.template, 1)
    return len(encode_prompt(decoder.tokenizer, text, one.subject, one.target_new).inputs)


@pytest.mark.parametrize("templates", [("{}",), ("{}", "Therefore the. {}")])
def test_the_longest_that_fits_can_be_written_and_one_more_token_is_refused(decoder, templates):
    limit = decoder.context_length
    words = next(count for count in range(1, 200) if inputs(decoder, count + 1, templates[-1]) > limit)
    assert inputs(decoder, words, templates[-1]) == limit
    check_requests(decoder.tokenizer, [request(1), request(words)], templates, limit)
    settings = ValueSettings(steps=2, learning_rate=0.1)
    optimise_values(decoder, [request(words)], templates, 1, settings, memory=2**28)
    with pytest.raises(InputError, match="Case 5 does not fit") as caught:
        check_requests(decoder.tokenizer, [request(1), request(words + 1)], templates, limit)
    assert f"{limit + 2} tokens" in caught.value.details["got"]  # the target's last one is only predicted
    assert f"at most {limit} tokens" in caught.value.details["expected"]


def test_a_subject_that_fits_its_prompt_alone_must_fit_the_divergence_too(decoder):
    limit = decoder.context_length
    subject = next("a" * count for count in range(1, 400) if _subject_tokens(decoder, "a" * (count + 1)) > limit - 1)
    one = EditRequest(5, subject, "{}", "A")
    with pytest.raises(InputError, match="does not fit") as caught:
        check_requests(decoder.tokenizer, [one], ["{}"], limit)
    assert "{} is a" in caught.value.details["got"]


def _subject_tokens(decoder, subject: str) -> int:
    return len(decoder.tokenizer(subject)["input_ids"])


@pytest.mark.parametrize(
    ("fact", "name"),
    [
        (EditRequest(5, "\u200b", "{}", "A"), "subject"),
        (EditRequest(5, "Ilo", "{} is", "\u200b"), "target_new"),
        (EditRequest(5, "Ilo", "{} is", "A", "\u200b"), "target_true"),
    ],
)
def test_what_the_tokenizer_does_not_see_is_named(decoder, fact, name):
    from tokenizers import Regex, normalizers

    decoder.tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(" ?\u200b"), "")
    with pytest.raises(InputError, match=f"no token for its {name}"):
        check_requests(decoder.tokenizer, [fact], ["{}"], 96)


@pytest.mark.parametrize(
    ("fact", "name"),
    [
        (EditRequest(5, "Ilo", "{} is", "Rome</s>"), "target_new"),
        (EditRequest(5, "Ilo", "{} is", "A", "</s>"), "target_true"),
        (EditRequest(5, "Ilo</s>", "{} is", "A"), "prompt"),
        (EditRequest(5, "Ilo", "</s> {} is", "A"), "prompt"),
    ],
)
def test_a_special_token_in_a_text_is_refused(decoder, fact, name):
    with pytest.raises(InputError, match=f"Case 5: its {name} contains the special token '</s>'"):
        check_requests(decoder.tokenizer, [fact], ["{}"], 96)
    decoder.tokenizer.split_special_tokens = True  # Then it is text like any other.
    check_requests(decoder.tokenizer, [fact], ["{}"], 96)


def test_a_character_that_the_tokenizer_does_not_know_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "Ilo", "is", "A", "Rome"]
    known = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="<unk>")
    check_requests(tokenizer, [EditRequest(5, "Ilo", "{} is", "A")], ["{}"], 96)
    with pytest.raises(InputError, match="has no token for a part of its prompt or its target_new"):
        check_requests(tokenizer, [EditRequest(5, "Ilo", "{} is", "Å")], ["{}"], 96)
