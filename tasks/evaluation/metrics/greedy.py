"""What a model says by itself: FreeEff, FreeGen, the share of prompts it answers with the new object.

A model is given a rewrite prompt (FreeEff) or a paraphrase (FreeGen) and goes on with its first choices, without
teacher forcing. Its answer counts when it opens with the new object as whole words, after Unicode NFC and with runs of
white space as one space: ``Englishman`` is not ``English``. Scripts that write no spaces between words are judged too
strictly. Means are taken within a record, then over records.  [Yang et al. 2025, The Mirage of Model Editing]

Where Eff* or Gen* counts a prompt, every token of the object is the first choice behind those before it, and the answer
begins with these very tokens. So Eff* implies FreeEff unless the answer goes on inside the last word, and FreeEff
implies Eff* unless the answer spells the object in other tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import continuations, end_tokens
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes, mean_by_kind
from factsmith.tasks.facts.record import Record

__all__ = ["FAMILY", "opens_with"]

_METRIC_OF = {"rewrite": "FreeEff", "paraphrase": "FreeGen"}


class Greedy(MetricFamily):
    """FreeEff and FreeGen. A prompt is not scored if the object does not fit behind it."""

    name = "greedy"
    version = 1
    kinds = tuple(_METRIC_OF)
    # Tokens beyond the object's: for what follows it, and for other spellings of it.
    parameters: ClassVar[Mapping[str, Any]] = {"more": 5}
    schema = pa.schema([*ASKED, ("answer", pa.string()), ("correct", pa.bool_())])
    metrics: ClassVar[Mapping[str, str]] = {
        "FreeEff": "greedy text opens with the new object",
        "FreeGen": "so it does in other words",
    }

    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        asked = self.asked(records)
        prompts = [encode_prompt(decoder.tokenizer, one.prompt).tokens for one in asked]
        lengths = [
            len(prompt) + _answer_length(decoder.tokenizer, one) for prompt, one in zip(prompts, asked, strict=True)
        ]
        limits = [length + self.parameters["more"] if length <= decoder.context_length else 0 for length in lengths]
        continued = continuations(
            decoder, prompts, limits, most_tokens=most_tokens, ends=end_tokens(decoder), advance=advance
        )
        measured: list[dict[str, Any]] = []
        for one, prompt, said in zip(asked, prompts, continued, strict=True):
            answer = _text_behind(decoder.tokenizer, prompt, said)
            measured.append({"answer": answer, "correct": opens_with(answer, one.answer, one.prompt)} if said else {})
        return self.table(asked, measured)

    def by_record(self, rows: pa.Table) -> pa.Table:
        return mean_by_kind(rows, _METRIC_OF, lambda asked: asked["correct"])

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        said = [(one, _answer_length(tokenizer, one) + self.parameters["more"]) for one in self.asked([record])]
        return [(len(encode_prompt(tokenizer, one.prompt).tokens) + count - 1, count) for one, count in said]


def _answer_length(tokenizer: PreTrainedTokenizerFast, asked: Asked) -> int:
    """Tokens of what is right behind a prompt."""
    return encode_prompt(tokenizer, asked.prompt, target=asked.answer).continued


def _text_behind(tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], said: Sequence[int]) -> str:
    """The text of ``said`` behind ``prompt``. Decoded alone it could lose the space that it begins with."""
    before, whole = (
        str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for tokens in ([*prompt], [*prompt, *said])
    )
    return whole[len(before) :]


def opens_with(answer: str, wanted: str, prompt: str) -> bool:
    """Whether ``answer``, as it stands behind ``prompt``, opens with ``wanted`` as whole words."""
    plain, wanted = (" ".join(unicodedata.normalize("NFC", text).split()) for text in (answer, wanted))
    inside = _in_word(prompt[-1:]) and _in_word(answer[:1])
    goes_on = _in_word(wanted[-1:]) and _in_word(plain[len(wanted) :][:1])
    return plain.startswith(wanted) and not inside and not goes_on


def _in_word(character: str) -> bool:
    """Whether a letter, a digit, or a mark that belongs to one; no character does not."""
    return bool(character) and unicodedata.category(character)[0] in "LMN"


FAMILY = Greedy()
