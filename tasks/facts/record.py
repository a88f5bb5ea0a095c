"""A record of a dataset: an edit request, and the prompts that score the edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.text import PLACEHOLDER
from factsmith.tasks.decoder.words import separator_between
from factsmith.tasks.facts.request import EditRequest

__all__ = ["Question", "QuestionSet", "Record"]


@dataclass(frozen=True)
class Question:
    """A prompt whose generated answer must contain what is known to be right.

    Attributes:
        prompt: a question, or a text to be continued.
        answers: what the answer must contain: one spelling of each of these groups of spellings.
        is_question: whether ``prompt`` is a question. A model is then shown how to answer questions.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]
    is_question: bool = False

    @property
    def content(self) -> list[Any]:
        """The question as a JSON value."""
        return [self.prompt, [list(spellings) for spellings in self.answers], self.is_question]


@dataclass(frozen=True)
class QuestionSet:
    """Questions that count as one.

    Attributes:
        questions: the questions.
        every: whether all of them must be answered right, or only one.
        conditions: the set counts only if the unedited model answers all of these right.
    """

    questions: tuple[Question, ...]
    every: bool
    conditions: tuple[Question, ...] = ()

    @property
    def content(self) -> list[Any]:
        """The set as a JSON value."""
        parts = ([one.content for one in questions] for questions in (self.questions, self.conditions))
        return [*parts, self.every]


@dataclass(frozen=True)
class Record:
    """One edit request with its scoring prompts.

    Attributes:
        request: the fact to write.
        prompts: prompts by kind. ``rewrite`` and ``paraphrase`` ask for the request's targets, ``neighborhood`` asks
            about other subjects, ``portability`` asks about a consequence of the new fact, and ``generation`` is
            continued freely. ``question``, ``question_paraphrase`` and ``question_neighborhood`` are asked in a chat.
        place: index of the record in the file or dataset, for messages.
        answers: by kind, the correct answer to each prompt; only for kinds whose answers are not the request's targets.
        relation: name of the relation between subject and object, if the dataset gives it. Different prompts may ask
            for the same relation.
        question: the fact as a question, with ``{}`` in place of the subject, if there is one.
        sets: questions that count together, by kind.
        group: number of the instance that the record is a part of, if several edits make up an instance. They are
            written together, and follow each other in the dataset. The first of them has the questions of the instance.
    """

    request: EditRequest
    prompts: Mapping[str, tuple[str, ...]]
    place: int = field(compare=False)
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    relation: str | None = None
    question: str | None = None
    sets: Mapping[str, tuple[QuestionSet, ...]] = field(default_factory=dict)
    group: int | None = None

    def asked_as(self, forms: Sequence[str], neighbors: Mapping[str, str] = MappingProxyType({})) -> Record:
        """The record with questions.

        Args:
            forms: the fact as questions, each with ``{}`` in place of the subject. The first is the question, the
                others are its paraphrases. If there are none, the record stays as it is.
            neighbors: questions about other subjects, each with its answer, which must not change.
        """
        if not forms:
            return self
        question, *paraphrases = (form.replace(PLACEHOLDER, self.request.subject, 1) for form in forms)
        prompts = {
            "question": (question,),
            "question_paraphrase": tuple(paraphrases),
            "question_neighborhood": tuple(neighbors),
        }
        answers = {"question_neighborhood": tuple(neighbors.values())}
        return replace(
            self, prompts={**self.prompts, **prompts}, answers={**self.answers, **answers}, question=forms[0]
        )

    @property
    def with_question(self) -> Record:
        """The record whose request is written as its question too, if it has one."""
        return replace(self, request=replace(self.request, question=self.question))

    @property
    def fact(self) -> str:
        """Digest of the fact, which joins the scores of runs. It is that of the request; each instance has its own."""
        digest = self.request.fact_digest
        return digest if self.group is None else digest_of({"fact": digest, "group": self.group})

    def digest(self, kinds: Sequence[str]) -> str:
        """Digest of everything that a score on prompts of ``kinds`` depends on, except the model and the metric."""
        request = self.request
        content: dict[str, Any] = {
            "case_id": request.case_id,
            "prompts": {kind: list(self.prompts.get(kind, ())) for kind in kinds},
            "answers": {kind: list(self.answers[kind]) for kind in kinds if kind in self.answers},
            "targets": [request.target_new, request.target_true],
        }
        if asked := {kind: [one.content for one in self.sets[kind]] for kind in kinds if kind in self.sets}:
            content["sets"] = asked
        prompts = [prompt for kind in kinds for prompt in self.prompts.get(kind, ())]
        targets = [
            request.target_new,
            request.target_true or "",
            *(a for kind in kinds for a in self.answers.get(kind, ())),
        ]
        separators = {separator_between(prompt, target, request.separator) for prompt in prompts for target in targets}
        # With the usual blank everywhere, scores keep the names of earlier versions.
        return digest_of(content if separators <= {" "} else {**content, "separator": request.separator})
