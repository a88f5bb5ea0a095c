"""Texts that a user gives, and the place of the subject in a prompt: the same rules for every field of every format."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from factsmith.tasks.decoder.text import PLACEHOLDER, is_unicode
from factsmith.tasks.decoder.words import occurrences

__all__ = ["TemplateError", "appearance", "filled", "invisible", "problem_of", "stripped", "template_of"]

_INVISIBLE = {"Cc", "Cf", "Co"}
"""Unicode categories of characters that cannot be seen: control, format and private use characters."""

_SELECTOR = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Characters that choose between two forms of the symbol or the ideograph before them."""

_JOINERS = "\u200c\u200d"
"""They change the forms of the letters or the symbols beside them."""

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
    if not is_unicode(text):
        return "is not Unicode text"
    for before, character in (("", text[0]), (text[-2:-1], text[-1])):
        if _is_invisible(before, character) or character in _JOINERS:
            return f"starts or ends with a character that cannot be seen, U+{ord(character):04X}"
    return None


def invisible(text: str) -> Iterator[str]:
    """The characters of ``text`` that cannot be seen, not even by their effect on others. Copied text has them.

    A model reads them as tokens of their own, so the text is not the one that people type.
    """
    if text.isprintable() and not _SELECTOR.search(text):
        return  # Texts are many, and nearly all of them have no such character.
    for place, character in enumerate(text):
        if not character.isspace() and _is_invisible(text[place - 1 : place], character):
            yield character


def _is_invisible(before: str, character: str) -> bool:
    """Whether ``character`` cannot be seen after the character ``before``, which is empty at the start of a text."""
    if _SELECTOR.match(character):
        # A cased letter has one form. The category of an ideograph is Lo, that of a symbol So.
        return not before.strip() or unicodedata.category(before) in ("Lu", "Ll")
    return character not in _JOINERS and unicodedata.category(character) in _INVISIBLE


def appearance(text: str) -> str:
    """What can be seen of ``text``. It is equal for texts that look the same.

    Accented letters are composed, blanks of all kinds and lengths are one blank, and characters without width are left
    out.
    """
    if text.isascii():
        return " ".join(text.split())  # The rest takes long, and changes nothing.
    seen = (one for one in unicodedata.normalize("NFC", text) if not _SELECTOR.match(one))
    return " ".join("".join(one for one in seen if unicodedata.category(one) != "Cf").split())


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
        if subject in prompt:
            problem = "the subject is only a part of a longer word in the prompt"
        elif appearance(subject) in appearance(prompt):
            problem = "the subject in the prompt looks the same, but consists of other characters"
        else:
            problem = "the subject is not in the prompt"
        raise TemplateError(problem, expected="the subject as whole words, or one {} in its place")
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
