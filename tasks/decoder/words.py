"""Words in a text: where one begins and ends, and whether a blank stands between a prompt and its object.

Most scripts separate words by blanks. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan do not.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

__all__ = ["Separator", "normalised", "occurrences", "separator_between", "within_word"]

Separator = Literal["auto", "blank", "none"]
"""What stands between a prompt and its object. ``auto`` is a blank, unless one of them is in a script without blanks.
"""

_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff00-\uff9f\U00020000-\U0003ffff]"
)
"""Characters of scripts without blanks, and their punctuation."""


def normalised(text: str) -> str:
    """``text`` in Unicode NFC, with each run of white space replaced by one space and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def separator_between(prompt: str, text: str, separator: Separator = "auto") -> str:
    """What stands between ``prompt`` and the ``text`` that continues it: one blank or nothing."""
    if separator != "auto":
        return " " if separator == "blank" else ""
    return "" if any(map(_WITHOUT_BLANKS.match, (prompt[-1:], text[:1]))) else " "


def within_word(text: str, place: int) -> bool:
    """Whether ``place``, an index between two characters of ``text``, is inside a word.

    In scripts without blanks a word may begin and end anywhere, but not before a combining mark.
    """
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after)[0] == "M":
        return True
    return _in_word(before) and _in_word(after) and not any(map(_WITHOUT_BLANKS.match, (before, after)))


def occurrences(text: str, words: str) -> list[int]:
    """The places in ``text`` where ``words`` begin and end as whole words."""
    found, place = [], text.find(words)
    while place >= 0:
        if not within_word(text, place) and not within_word(text, place + len(words)):
            found.append(place)
        place = text.find(words, place + 1)
    return found


def _in_word(character: str) -> bool:
    """Whether ``character`` is a letter, a digit, a combining mark or an underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LMN"
