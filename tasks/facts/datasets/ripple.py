"""RippleEdits (Cohen et al. 2024): edits with tests of six criteria, what must change with a fact and what must not.

A record has ``edit`` and a list of tests for each criterion. ``edit.prompt`` is a whole sentence, such as "The name of
the mother of Ada is Eve.", from which subject, prompt and object are derived. ``edit.original_fact`` (or
``previous_fact``), if it is given, has the sentence of the true fact. A test has ``test_queries``, of which all
(``test_condition`` AND) or one (OR) must be answered right, and ``condition_queries``, which the unedited model must
answer right for the test to count. A query names one or several things in ``answers``, each with aliases; a right
answer contains all of them. As in the paper's code, a spelling of one character counts only if it is a digit.

The data have queries without a prompt or without an answer. Tests with such a query are left out, and counted in a
warning. The benchmark has no paraphrases and no neighbourhood for other metric families.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from factsmith.tasks.decoder.text import PLACEHOLDER
from factsmith.tasks.decoder.words import occurrences
from factsmith.tasks.facts.reading import RawRecord, parse_records
from factsmith.tasks.facts.record import Question, QuestionSet, Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load"]

logger = logging.getLogger(__name__)

_CRITERIA = (
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
    "Forgetfulness",
    "Relation_Specificity",
)
_MISSPELT = {"Relation_Specificity": "Relation_Specifity"}
"""Another spelling, which the benchmark's documentation has."""

_VERB = re.compile(r"(?= (?:is|are|follows|is followed by) )")
"""The places where a sentence's object may begin, after a verb."""

_FORMS = [
    re.compile(form)
    for form in (
        r"The .*? which (?P<subject>.+) (?:is (?:associated with|a member of|part of|the capital of)|plays in) is",
        r"The name of the award (?P<subject>.+) won is",
        r"The name of the position held by (?P<subject>.+) is",
        r"The name of the currency in (?P<subject>.+) is",
        r"The number of children (?P<subject>.+) has is",
        r"(?P<subject>.+) (?:follows|is followed by)",
    )
]
"""The forms of a prompt that do not end in "of SUBJECT is"."""

_OF = re.compile(r"The (?:names? of the )?(?P<rest>.+) (?:is|are)")


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a RippleEdits file. The case id of a record is its index.

    Raises:
        InputError: a field is missing or wrong, or it is not clear what is subject and what is object. The message
            names the file, the index and the field.
    """
    path = settings.required_path()
    left_out: list[int] = []
    records = parse_records(path, partial(_parse, left_out=left_out), unused=("example_type",))
    if left_out:
        logger.warning("%s: left out %d tests with a query that has no prompt or no answer", path, len(left_out))
    return records


def _parse(raw: RawRecord, left_out: list[int]) -> Record:
    edit = raw.part("edit")
    if edit is None:
        raise raw.error("field 'edit' is missing")
    tests: dict[str, list[RawRecord]] = {}
    for criterion in _CRITERIA:
        tests[criterion] = raw.parts(raw.first(criterion, *([_MISSPELT[criterion]] if criterion in _MISSPELT else [])))
    every = [query for found in tests.values() for test in found for query in _queries(test)]
    sets: dict[str, tuple[QuestionSet, ...]] = {}
    for criterion, found in tests.items():
        made = [_set(test) for test in found]
        left_out += [raw.index] * made.count(None)
        sets[criterion] = tuple(one for one in made if one is not None)
    fact = _fact(edit, every)
    original = edit.part(edit.first("original_fact", "previous_fact"))
    request = EditRequest(
        case_id=raw.index,
        subject=fact.subject,
        template=fact.template,
        target_new=fact.target,
        target_true=_body(original)[len(fact.prompt) :].strip() if original else None,
    )
    aliases = next((one for one in _spellings_of(edit, every) if fact.target in one), (fact.target,))
    sets["fact"] = (QuestionSet((Question(request.prompt, (aliases,)),), every=True),)
    return Record(request, {"rewrite": (request.prompt,)}, raw.index, relation=edit.text("relation"), sets=sets)


# -------------------------------------------------------------------------------------------------------- the tests


def _queries(test: RawRecord) -> list[RawRecord]:
    return [*test.parts("test_queries"), *test.parts("condition_queries")]


def _set(test: RawRecord) -> QuestionSet | None:
    """The questions of a test; ``None`` if one of them cannot be asked."""
    condition = test.text("test_condition")
    if condition not in ("OR", "AND"):
        raise test.error(f"field '{test.within}test_condition' is not known", got=condition, expected="OR or AND")
    questions, conditions = (
        [_question(query) for query in test.parts(name)] for name in ("test_queries", "condition_queries")
    )
    if not questions or None in questions or None in conditions:
        return None
    asked, needed = (tuple(one for one in part if one is not None) for part in (questions, conditions))
    return QuestionSet(asked, every=condition == "AND", conditions=needed)


def _question(query: RawRecord) -> Question | None:
    """A query as a question; ``None`` if it has no prompt, or no answer."""
    answers = tuple(_spellings(answer) for answer in query.parts("answers"))
    prompt = query.value("prompt")
    if not prompt or not answers or not all(answers):
        return None
    return Question(query.text("prompt"), answers)


def _spellings(answer: RawRecord) -> tuple[str, ...]:
    """Value and aliases of an answer, without those that are too short to mean it."""
    given = [answer.value("value"), *(answer.value("aliases") or [])]
    texts = [answer.checked(str(one), f"an answer in field '{answer.within}value'") for one in given if one]
    return tuple(dict.fromkeys(one for one in texts if len(one) > 1 or one.isdigit()))


# --------------------------------------------------------------------------------------------------------- the fact


@dataclass(frozen=True)
class _Fact:
    """A reading of a sentence.

    Attributes:
        subject: the subject.
        prompt: the sentence up to the object.
        template: the prompt, with ``{}`` in place of the subject.
        target: the object.
    """

    subject: str
    prompt: str
    template: str
    target: str


def _fact(edit: RawRecord, queries: Sequence[RawRecord]) -> _Fact:
    """The one reading of ``edit.prompt`` that agrees with the sentence of the true fact, and with the queries.

    Raises:
        InputError: there is none, or more than one.
    """
    found = list(_readings(_body(edit), edit.text("relation")))
    original = edit.part(edit.first("original_fact", "previous_fact"))
    if original is not None:
        # The true fact has the same prompt and another object.
        found = [one for one in found if _body(original).startswith(f"{one.prompt} ")]
        found = found[-1:]
    # Further queries about the subject name it, and queries for the new object spell it.
    about = [query for query in queries if query.value("subject_id") == edit.value("subject_id")]
    named = [query.text("prompt") for query in about if query.value("prompt")]
    if named and len(found) > 1:
        ranks = [(sum(bool(occurrences(prompt, one.subject)) for prompt in named), len(one.subject)) for one in found]
        found = [one for one, rank in zip(found, ranks, strict=True) if rank == max(ranks)]
    spelt = {spelling for spellings in _spellings_of(edit, queries) for spelling in spellings}
    found = [one for one in found if one.target in spelt] or found
    if len(found) != 1:
        raise edit.error(
            f"it is not clear what is subject and what is object in field '{edit.within}prompt'",
            got=f"{len(found)} readings of {edit.text('prompt')!r}",
            expected="a sentence such as 'The name of the mother of SUBJECT is OBJECT.'",
            remedy="leave out this record",
        )
    return found[0]


def _body(fact: RawRecord) -> str:
    """The sentence of a fact without its full stop."""
    return fact.text("prompt").removesuffix(".")


def _readings(sentence: str, relation: str) -> Iterator[_Fact]:
    """Every reading of ``sentence``, with the shortest prompt first. What looks like the verb may be part of a name."""
    for verb in _VERB.finditer(sentence):
        for words in ("is followed by", "is", "are", "follows"):
            end = verb.start() + 1 + len(words)
            prompt, target = sentence[:end], sentence[end:].strip()
            if sentence[verb.start() + 1 :].startswith(f"{words} ") and (span := _subject(prompt, relation)) and target:
                first, last = span
                template = f"{prompt[:first]}{PLACEHOLDER}{prompt[last:]}"
                yield _Fact(prompt[first:last], prompt, template, target)


def _subject(prompt: str, relation: str) -> tuple[int, int] | None:
    """Where the subject begins and ends in ``prompt``; ``None`` if the prompt has no form that is known."""
    for form in _FORMS:
        if found := form.fullmatch(prompt):
            return found.span("subject")
    found = _OF.fullmatch(prompt)
    if found is None or " which " in prompt:
        return None
    # The name of the relation says how often "of" occurs before the one that leads to the subject.
    place = found.start("rest")
    for _ in range(relation.count("_OF_") + 1):
        place = prompt.find(" of ", place, found.end("rest"))
        if place < 0:
            return None
        place += len(" of ")
    return place, found.end("rest")


def _spellings_of(edit: RawRecord, queries: Sequence[RawRecord]) -> list[tuple[str, ...]]:
    """The spellings of the new object, from queries that ask for it alone."""
    object_id = edit.value("target_id")
    asked = [query for query in queries if query.value("query_type") == "regular"]
    alone = [query for query in asked if query.value("target_ids") == [object_id]]
    return [_spellings(answer) for query in alone for answer in query.parts("answers")]
