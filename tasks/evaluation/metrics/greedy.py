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

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.decoder.words import normalised, within_word
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
        from factsmith.tasks.decoder.generation import greedy_answers

        asked = self.asked(records)
        prompts = [encode_prompt(decoder.tokenizer, one.prompt).tokens for one in asked]
        counts = [_answer_length(decoder.tokenizer, one) for one in asked]
        more = self.parameters["more"]
        answers = greedy_answers(decoder, prompts, counts, more=more, most_tokens=most_tokens, advance=advance)
        measured: list[dict[str, Any]] = [
            {} if answer is None else {"answer": answer, "correct": opens_with(answer, one.answer, one.prompt)}
            for one, answer in zip(asked, answers, strict=True)
        ]
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
    plain, wanted = normalised(answer), normalised(wanted)
    inside = within_word(prompt + answer, len(prompt))
    return plain.startswith(wanted) and not inside and not within_word(plain, len(wanted))


FAMILY = Greedy()
