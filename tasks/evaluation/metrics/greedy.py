"""FreeEff and FreeGen: the share of prompts that a model answers with the new object, without teacher forcing.

A model continues a rewrite prompt (FreeEff) or a paraphrase (FreeGen) with its first choices. Its answer counts if it
starts with the new object as whole words: ``Englishman`` is not ``English``. Texts are compared after Unicode NFC
normalisation, with each run of white space replaced by one space. In scripts without blanks, a word may end anywhere.
Means are taken within a record, then over records.  [Yang et al. 2025, The Mirage of Model Editing]

If Eff* or Gen* counts a prompt, every token of the object is the first choice after the tokens before it, so the answer
starts with exactly these tokens. So Eff* implies FreeEff unless the answer continues inside the last word, and FreeEff
implies Eff* unless the answer spells the object with other tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from factsmith.tasks.decoder.text import encode_prompt, text_after
from factsmith.tasks.decoder.words import within_word
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes, mean_by_kind
from factsmith.tasks.facts.record import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["FAMILY", "opens_with"]

_METRIC_OF = {"rewrite": "FreeEff", "paraphrase": "FreeGen"}


class Greedy(MetricFamily):
    """FreeEff and FreeGen. A prompt is not scored if prompt and object do not fit the model."""

    name = "greedy"
    version = 1
    kinds = tuple(_METRIC_OF)
    efficacy = ("FreeEff",)
    # Tokens to generate beyond those of the object, for the text after it and for spellings with more tokens.
    parameters: ClassVar[Mapping[str, Any]] = {"more": 5}
    text = "answer"
    schema = pa.schema([*ASKED, ("answer", pa.string()), ("correct", pa.bool_())])
    metrics: ClassVar[Mapping[str, str]] = {
        "FreeEff": "efficacy: greedy answer starts with new object",
        "FreeGen": "paraphrase: greedy answer starts with new object",
    }

    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        from factsmith.tasks.decoder.generation import continuations, end_tokens

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
        for one, prompt, generated in zip(asked, prompts, continued, strict=True):
            answer = text_after(decoder.tokenizer, prompt, generated)
            correct = opens_with(answer, one.answer, one.prompt)
            measured.append({"answer": answer, "correct": correct} if generated else {})
        return self.table(asked, measured)

    def by_record(self, rows: pa.Table) -> pa.Table:
        return mean_by_kind(rows, _METRIC_OF, lambda asked: asked["correct"])

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        counts = [(one, _answer_length(tokenizer, one) + self.parameters["more"]) for one in self.asked([record])]
        return [(len(encode_prompt(tokenizer, one.prompt).tokens) + count - 1, count) for one, count in counts]


def _answer_length(tokenizer: PreTrainedTokenizerFast, asked: Asked) -> int:
    """The number of tokens of a prompt's correct answer."""
    return encode_prompt(
        tokenizer, asked.prompt, target=asked.answer, separator=asked.record.request.separator
    ).continued


def opens_with(answer: str, wanted: str, prompt: str) -> bool:
    """Whether ``answer``, which follows ``prompt``, starts with ``wanted`` as whole words."""
    plain, wanted = (" ".join(unicodedata.normalize("NFC", text).split()) for text in (answer, wanted))
    inside = within_word(prompt + answer, len(prompt))
    return plain.startswith(wanted) and not inside and not within_word(plain, len(wanted))


FAMILY = Greedy()
