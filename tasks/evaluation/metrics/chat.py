"""ChatEff, ChatGen and ChatSpe: facts asked as questions in the model's chat template, and answered freely.

A model is asked the fact's question (ChatEff) and its paraphrases (ChatGen) as a user's turn. It answers with its first
choices until its turn ends, with 24 tokens at most. An answer counts if it contains the new object as whole words, at
its start or anywhere else: "The Eiffel Tower is located in Rome, Italy." ChatSpe asks about another subject, whose
answer must contain the true object. ChatH is the harmonic mean of the three. Means are taken within a record, then over
records.

An answer is a sentence of its own and may begin with the object, as "Soccer is ..." for "soccer". So small and capital
letters are the same here. FreeEff and FreeGen, whose answers continue a sentence, tell them apart. The subject is left
out of the answer before the object is looked for: "Microsoft Office was made by Nokia" does not say that Microsoft made
it. Texts are compared after Unicode NFC normalisation, with each run of white space replaced by one space. An answer
that denies the object counts like one that asserts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from factsmith.artifacts.errors import InputError
from factsmith.tasks.chat.questions import subject_in
from factsmith.tasks.chat.template import end_of_turn, in_chat
from factsmith.tasks.decoder.text import PLACEHOLDER, encode_prompt
from factsmith.tasks.decoder.words import normalised, occurrences
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes, mean_by_kind
from factsmith.tasks.facts.record import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["FAMILY", "gives"]

_METRIC_OF = {"question": "ChatEff", "question_paraphrase": "ChatGen", "question_neighborhood": "ChatSpe"}


class Chat(MetricFamily):
    """ChatEff, ChatGen, ChatSpe and ChatH. A question is not scored if it and its answer do not fit the model."""

    name = "chat"
    version = 1
    kinds = tuple(_METRIC_OF)
    parameters: ClassVar[Mapping[str, Any]] = {"tokens": 24}
    text = "answer"
    schema = pa.schema([*ASKED, ("answer", pa.string()), ("correct", pa.bool_())])
    metrics: ClassVar[Mapping[str, str]] = {
        "ChatEff": "efficacy in chat: answer contains new object",
        "ChatGen": "the same for paraphrased questions",
        "ChatSpe": "specificity in chat: a neighbour's answer contains true object",
        "ChatH": "harmonic mean of ChatEff, ChatGen and ChatSpe",
    }
    mean = ("ChatH", ("ChatEff", "ChatGen", "ChatSpe"))
    efficacy = ("ChatEff",)

    def recipe(self, tokenizer: PreTrainedTokenizerFast) -> Mapping[str, Any]:
        return {**self.parameters, "chat": in_chat(tokenizer, PLACEHOLDER)}

    def check(self, tokenizer: PreTrainedTokenizerFast, records: Sequence[Record]) -> None:
        in_chat(tokenizer, PLACEHOLDER)
        if not self.asked(records):
            raise InputError(
                "The metric family chat asks questions, and no record has one.",
                expected="records of CounterFact or zsRE, or facts with the field questions",
                remedy='add questions to the facts, such as ["In which city is {}?"], or leave out the family chat',
            )

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
        prompts = [_tokens(decoder.tokenizer, one.prompt) for one in asked]
        counts, ends = [self.parameters["tokens"]] * len(prompts), end_of_turn(decoder.tokenizer)
        answers = greedy_answers(decoder, prompts, counts, ends=ends, most_tokens=most_tokens, advance=advance)
        measured: list[dict[str, Any]] = [
            {}
            if answer is None
            else {"answer": answer.strip(), "correct": gives(answer.strip(), one.answer, _subject(one))}
            for one, answer in zip(asked, answers, strict=True)
        ]
        return self.table(asked, measured)

    def by_record(self, rows: pa.Table) -> pa.Table:
        return mean_by_kind(rows, _METRIC_OF, lambda asked: asked["correct"])

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        count = self.parameters["tokens"]
        return [(len(_tokens(tokenizer, one.prompt)) + count - 1, count) for one in self.asked([record])]


def gives(answer: str, wanted: str, subject: str | None = None) -> bool:
    """Whether ``answer`` contains ``wanted`` as whole words, other than within ``subject``."""
    said, wanted, subject = (_plain(text) for text in (answer, wanted, subject or ""))
    for place in reversed(occurrences(said, subject) if subject else []):
        said = f"{said[:place]}…{said[place + len(subject) :]}"
    return bool(occurrences(said, wanted))


def _plain(text: str) -> str:
    return normalised(text).casefold()


def _subject(asked: Asked) -> str | None:
    """The subject of a question. A neighbour's is found by the form of the record's own question."""
    record = asked.record
    if asked.kind != "question_neighborhood":
        return record.request.subject
    return subject_in(asked.prompt, [record.question]) if record.question else None


def _tokens(tokenizer: PreTrainedTokenizerFast, question: str) -> tuple[int, ...]:
    return encode_prompt(tokenizer, in_chat(tokenizer, question), special=False).tokens


FAMILY = Chat()
