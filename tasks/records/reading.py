"""Records out of JSON and JSON lines files; whatever is wrong with one is said with its file, index and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.models.text import PLACEHOLDER

__all__ = ["RawRecord", "read_json", "read_records"]


@dataclass(frozen=True)
class RawRecord:
    """An object of a file, with its place.

    Attributes:
        where: the file, for messages.
        index: of the record, from 0.
        fields: the object.
    """

    where: Path | str
    index: int
    fields: Mapping[str, Any]

    def error(self, problem: str, **details: Any) -> InputError:
        return InputError(f"Record {self.index} of {self.where} (counted from 0): {problem}.", **details)

    def text(self, *names: str) -> str:
        """The text under ``names``, one inside the other: must be there and not blank."""
        value: Any = self.fields
        for depth, name in enumerate(names):
            known = list(value) if isinstance(value, Mapping) else []
            if name not in known:
                where = ".".join(names[: depth + 1])
                others = ", ".join(map(repr, known))
                raise self.error(f"field {where!r} is missing", got=f"fields {others}" if known else None)
            value = value[name]
        if problem := _problem_of(value):
            raise self.error(f"field {'.'.join(names)!r} is {problem}", got=ascii(value)[:80])
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """The list of texts under ``name``; empty if the field is not there."""
        value = self.fields.get(name, [])
        if not isinstance(value, list) or any(map(_problem_of, value)):
            raise self.error(f"field {name!r} is not a list of texts", got=ascii(value)[:80])
        return tuple(value)

    def template(self, prompt: str, subject: str) -> str:
        """``prompt`` with one placeholder where the subject stands (the last time, if it stands there often)."""
        count = prompt.count(PLACEHOLDER)
        if count == 1:
            return prompt
        before, found, after = prompt.rpartition(subject)
        if count > 1 or not found:
            raise self.error(
                "the prompt has more than one {}" if count > 1 else "the subject is not in the prompt (field 'prompt')",
                got=f"subject {subject!r}, prompt {prompt!r}",
                expected="the subject, or one {} in its place",
            )
        return before + PLACEHOLDER + after

    def known_fields(self, known: set[str]) -> None:
        """Refuse a field that looks like a misspelt one; others that are not known are left alone."""
        for name in self.fields:
            if name not in known and "did you mean" in (remedy := closest(name, known - set(self.fields), cutoff=0.8)):
                raise self.error(f"field {name!r} is not known", remedy=remedy)


def _problem_of(value: Any) -> str | None:
    """Why ``value`` cannot be fed to a model as text."""
    if not isinstance(value, str):
        return "not text"
    if not value.strip():
        return "empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "not Unicode text"
    return None


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        InputError: there is no such file, or it does not hold JSON.
    """
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON.", got=str(error)) from None


def read_records(path: Path) -> Iterator[RawRecord]:
    """The objects of a JSON list, or of JSON lines (``.jsonl``).

    Raises:
        InputError: no such file, no record in it, not JSON, or something that is not an object; says which.
    """
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(_read_text(path).split("\n"), 1) if line.strip()]
        values = [_parse_line(path, number, line) for number, line in lines]
    else:
        values = read_json(path)
        if not isinstance(values, list):
            raise InputError(f"{path} does not hold a list of records.", got=type(values).__name__)
    if not values:
        raise InputError(f"{path} is empty.", expected="at least one record")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise InputError(f"Record {index} of {path} (counted from 0) is not an object.", got=type(value).__name__)
        yield RawRecord(path, index, value)


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Line {number} of {path} is not JSON.", got=str(error)) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", remedy="check the path; it is taken from where you are") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.", got=str(error)) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read.", got=error.strerror) from None
