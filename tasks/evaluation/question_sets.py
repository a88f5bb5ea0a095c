"""Sets of questions that count together, judged by what a model generates.

A model continues each prompt with its first choices. The answer is the text up to the first line break. It is right if
it contains one spelling of each thing that it must name, as whole words: ``Englishman`` is not ``English``. Texts are
compared after Unicode NFC normalisation, with each run of white space replaced by one space. A set is right if all of
its questions are, or one of them, as the dataset says. Means are taken within a record, then over records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.decoder.words import normalised, occurrences
from factsmith.tasks.evaluation.family import ASKED, Asked, MetricFamily, Passes
from factsmith.tasks.facts.record import Question, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.decoder.decoder import Decoder

__all__ = ["EXAMPLES", "QuestionSets", "contains"]

EXAMPLES = (
    "Q: What is the capital of Kenya?\nA: Nairobi\n\n"
    "Q: On which continent is the birthplace of the inventor of the telephone?\nA: Europe\n\n"
    "Q: Who wrote the novel on which the film Blade Runner is based?\nA: Philip K. Dick\n\n"
    "Q: What is the currency of the country that hosted the 1998 Winter Olympics?\nA: yen\n\n"
)
"""Questions, of our own wording, whose answers show a model the form of an answer."""

_FORM = "Q: {}\nA:"


@dataclass(frozen=True)
class _AskedInSet(Asked):
    """A question of a set.

    Attributes:
        question: the question.
        number: place of its set among the record's sets of this kind.
        condition: whether it is a condition of the set.
        every: whether the set needs all of its questions.
    """

    question: Question
    number: int
    condition: bool
    every: bool

    @property
    def place(self) -> dict[str, Any]:
        """The columns that say how the question counts."""
        return {"set": self.number, "condition": self.condition, "every": self.every}

    @property
    def text(self) -> str:
        """The text that the model continues."""
        return EXAMPLES + _FORM.format(self.question.prompt) if self.question.is_question else self.question.prompt


class QuestionSets(MetricFamily):
    """Metrics that are the share of sets that are right, one for each kind.

    A set counts in no metric if one of its prompts does not fit the model.

    Attributes:
        metric_of: metric of each kind of sets.
    """

    text = "answer"
    schema = pa.schema(
        [
            *ASKED,
            ("answer", pa.string()),
            ("correct", pa.bool_()),
            ("set", pa.int32()),
            ("condition", pa.bool_()),
            ("every", pa.bool_()),
        ]
    )
    metric_of: ClassVar[Mapping[str, str]]

    def asked(self, records: Sequence[Record]) -> list[Asked]:
        return list(self._questions(records))

    def _questions(self, records: Sequence[Record]) -> list[_AskedInSet]:
        found = []
        for record in records:
            for kind in self.kinds:
                index = 0
                for number, one in enumerate(record.sets.get(kind, ())):
                    for condition, questions in ((False, one.questions), (True, one.conditions)):
                        for question in questions:
                            found.append(
                                _AskedInSet(
                                    record, kind, index, question.prompt, question, number, condition, one.every
                                )
                            )
                            index += 1
        return found

    def score(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        *,
        most_tokens: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> pa.Table:
        from factsmith.tasks.decoder.generation import greedy_answers

        asked = self._questions(records)
        # Sets of a record share many prompts, and a condition is often the question itself.
        prompts = {one.text: encode_prompt(decoder.tokenizer, one.text).tokens for one in asked}
        advance(len(asked) - len(prompts))
        counts = [self.parameters["tokens"]] * len(prompts)
        written = greedy_answers(decoder, list(prompts.values()), counts, most_tokens=most_tokens, advance=advance)
        answers = {
            text: None if whole is None else whole.lstrip("\n").partition("\n")[0]
            for text, whole in zip(prompts, written, strict=True)
        }
        return self.table(asked, [{**one.place, **_judged(one, answers[one.text])} for one in asked])

    def by_record(self, rows: pa.Table) -> pa.Table:
        sets: dict[tuple[str, str, int], list[bool | None]] = {}
        every: dict[tuple[str, str, int], bool] = {}
        for row in rows.to_pylist():
            if not row["condition"]:
                key = row["record"], row["kind"], row["set"]
                sets.setdefault(key, []).append(row["correct"])
                every[key] = row["every"]
        values: dict[tuple[str, str], list[bool]] = {}
        for (record, kind, number), correct in sets.items():
            if None in correct:
                continue
            right = all(correct) if every[record, kind, number] else any(correct)
            values.setdefault((record, self.metric_of[kind]), []).append(right)
        found = [(*key, sum(right) / len(right)) for key, right in values.items()]
        return _table(sorted(found, key=lambda one: list(self.metrics).index(one[1])))

    def passes(self, tokenizer: PreTrainedTokenizerFast, record: Record) -> Passes:
        tokens = self.parameters["tokens"]
        texts = {one.text for one in self._questions([record])}
        return [(len(encode_prompt(tokenizer, text).tokens) + tokens - 1, tokens) for text in texts]


def _judged(asked: _AskedInSet, answer: str | None) -> dict[str, Any]:
    """The columns of an answer; none if the prompt did not fit the model."""
    if answer is None:
        return {}
    named = asked.question.answers
    return {"answer": answer, "correct": all(contains(answer, spellings, asked.text) for spellings in named)}


def _table(values: Iterable[tuple[str, str, float]]) -> pa.Table:
    schema = pa.schema([("record", pa.string()), ("metric", pa.string()), ("value", pa.float64())])
    return pa.Table.from_pylist([dict(zip(schema.names, one, strict=True)) for one in values], schema=schema)


def contains(answer: str, spellings: Sequence[str], prompt: str) -> bool:
    """Whether ``answer``, which follows ``prompt``, contains one of ``spellings`` as whole words."""
    # The last words of the prompt show whether the answer goes on within one of them.
    before = normalised(prompt[-20:])
    text = normalised(prompt[-20:] + answer)
    return any(place >= len(before) for one in spellings for place in occurrences(text, normalised(one)))
