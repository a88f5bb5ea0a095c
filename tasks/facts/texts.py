"""Texts that a user gives, and the place of the subject in a prompt: the same rules for every field of every format."""

from __future__ import annotations

import unicodedata
from typing import Any

from factsmith.tasks.decoder.text import PLACEHOLDER
from factsmith.tasks.decoder.words import occurrences

__all__ = ["TemplateError", "filled", "problem_of", "stripped", "template_of"]

_INVISIBLE = {"Cc", "Cf", "Co", "Cn"}
"""Unicode categories of characters that cannot be seen: control, format, private use and unassigned characters."""


_NO_WIDTH = "\u200b\u2060\ufeff"
"""Blanks without width. Copied text often ends with one."""

_NAMED = "{subject}"
"""Marks the place of the subject in a prompt that holds the subject elsewhere too."""


def stripped(text: str) -> str:
    """``text`` without the blanks at both ends. A model would take them for tokens of their own."""
    while text != (shorter := text.strip().strip(_NO_WIDTH)):
        text = shorter
    return text


def problem_of(value: Any) -> str | None:
    """The reason why ``value`` cannot be given to a model as text, or ``None`` if it can."""
    if not isinstance(value, str):
        return "is not text"
    text = stripped(value)
    if not text:
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not Unicode text"
    for character in (text[0], text[-1]):
        if unicodedata.category(character) in _INVISIBLE:
            return f"starts or ends with a character that cannot be seen, U+{ord(character):04X}"
    return None


class TemplateError(Exception):
    """It is not clear where a prompt's subject is.

    Attributes:
        expected: what would be clear.
        remedy: how to make it clear.
    """

    def __init__(self, problem: str, *, expected: str, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.expected = expected
        self.remedy = remedy


def template_of(prompt: str, subject: str) -> str:
    """``prompt`` with one ``{}`` in place of ``subject``.

    The place is the prompt's ``{}`` or ``{subject}``, or else where the subject stands as whole words.

    Raises:
        TemplateError: there is no such place, or more than one.
    """
    if _NAMED in prompt:
        if prompt.count(_NAMED) > 1 or PLACEHOLDER in prompt:
            raise TemplateError("the prompt marks several places for the subject", expected=f"one {_NAMED}")
        return prompt.replace(_NAMED, PLACEHOLDER)
    if prompt.count(PLACEHOLDER) > 1:
        raise TemplateError("the prompt has more than one {}", expected="one {} in place of the subject")
    if PLACEHOLDER in prompt:
        # As the subject would stand in it: in "{}n", the word is not "n".
        place, whole = prompt.index(PLACEHOLDER), prompt.replace(PLACEHOLDER, subject)
        if any(abs(one - place) >= len(subject) for one in occurrences(whole, subject)):
            raise TemplateError(
                "the prompt has {} and the subject as well, so the subject would be in it twice",
                expected="the subject, or one {} in its place",
                remedy=f"leave out one of them; if both are meant, write {_NAMED} where the fact's subject stands",
            )
        return prompt
    found = occurrences(prompt, subject)
    if len(found) > 1:
        raise TemplateError(
            f"the subject is in the prompt {len(found)} times",
            expected="the subject once",
            remedy=f"write {_NAMED} in place of the one that the fact is about",
        )
    if not found:
        inside = subject in prompt
        raise TemplateError(
            "the subject is only a part of a longer word in the prompt"
            if inside
            else "the subject is not in the prompt",
            expected="the subject as whole words, or one {} in its place",
        )
    return prompt[: found[0]] + PLACEHOLDER + prompt[found[0] + len(subject) :]


def filled(prompt: str, subject: str | None) -> str:
    """``prompt`` with ``subject`` in every place that is marked.

    Raises:
        TemplateError: a place is marked, and ``subject`` is ``None``.
    """
    marked = PLACEHOLDER in prompt or _NAMED in prompt
    if marked and subject is None:
        raise TemplateError("the prompt has {}, but it asks about other subjects", expected="the name of a subject")
    return prompt.replace(_NAMED, str(subject)).replace(PLACEHOLDER, str(subject)) if marked else prompt
