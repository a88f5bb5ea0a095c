"""Question forms: what to ask for the object of a relation, in words of our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

import yaml

from factsmith.tasks.decoder.text import PLACEHOLDER

__all__ = ["question_forms", "subject_in"]


def question_forms(relation: str | None) -> tuple[str, ...]:
    """The forms of a relation's question, each with one ``{}`` for the subject; empty if the relation is not known.

    The first is the question, the others are its paraphrases.

    Args:
        relation: the relation's Wikidata id, such as P36.
    """
    return _forms().get(relation or "", ())


def subject_in(prompt: str, forms: Iterable[str]) -> str | None:
    """The subject of ``prompt``, if it has one of ``forms``, each with one ``{}`` for the subject.

    Of several forms, the longest counts: "Ada, who works in" is about Ada by "{}, who works in", and not about "Ada,
    who" by "{} works in". A subject whose last word begins with a small letter is not believed, because it may be such
    a part of a form that is not known.
    """
    for start, end in sorted(((*form.split(PLACEHOLDER),) for form in forms), key=lambda parts: -sum(map(len, parts))):
        if prompt.startswith(start) and prompt.endswith(end) and len(prompt) > len(start) + len(end):
            subject = prompt[len(start) : len(prompt) - len(end)]
            return None if subject.isspace() or subject.split()[-1][0].islower() else subject
    return None


@cache
def _forms() -> Mapping[str, tuple[str, ...]]:
    text = (resources.files(__package__) / "questions.yaml").read_text(encoding="utf-8")
    return {relation: tuple(forms) for relation, forms in yaml.safe_load(text).items()}
