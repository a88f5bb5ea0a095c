"""Errors that a user can act on.

Every message says what is wrong, what was found, what was expected and how to mend it. The command line prints the
message and exits with the code of its class. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

__all__ = ["DamagedArtifactError", "FactsmithError", "InputError", "causes", "closest", "first_line", "similar"]

_LONGEST = 1000


class FactsmithError(Exception):
    """An error with a message for the user.

    Args:
        what: what is wrong, in one sentence, in the user's terms.
        got: what was found, if ``what`` does not say it.
        expected: what would have been right.
        remedy: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.details = {
            name: _clipped(str(value))
            for name, value in (("got", got), ("expected", expected), ("remedy", remedy))
            if value is not None
        }
        super().__init__("\n".join([_clipped(what), *(f"  {name}: {value}" for name, value in self.details.items())]))


def _clipped(text: str) -> str:
    """The start of ``text``, short enough for a terminal. A bad value may have a megabyte."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


class InputError(FactsmithError):
    """The user's input cannot be used: a typo, a bad file, settings that contradict each other."""

    exit_code = 2


class DamagedArtifactError(FactsmithError):
    """Stored bytes differ from those that were published."""


_MOST_CHOICES = 25


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """A remedy for an unknown name: the most similar known one, or all of them if they are not too many."""
    known = sorted(known)
    if (meant := similar(name, known, cutoff=cutoff)) is not None:
        return f"did you mean {meant!r}?"
    more = ", ..." if len(known) > _MOST_CHOICES else ""
    return f"choose one of {', '.join(known[:_MOST_CHOICES])}{more}"


def similar(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """The known name that is most similar to ``name``; ``None`` if none is."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and the errors that it was raised from. Libraries wrap the errors of what they call."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
