"""Reading records from JSON, JSON lines and tables. Errors name the file, index, line and field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.decoder.text import PLACEHOLDER
from factsmith.tasks.facts.files import json_lines, json_list, parse_json, read_text, table_rows

__all__ = ["RawRecord", "read_json", "read_records"]


@dataclass(frozen=True)
class RawRecord:
    """An object in a file, with its place.

    Attributes:
        where: the file, for messages.
        index: index of the record, from 0.
        fields: the object's fields.
        line: number of the line that it begins on, from 1; ``None`` if that is not known.
    """

    where: Path | str
    index: int
    fields: Mapping[str, Any]
    line: int | None = None

    def error(self, problem: str, **details: Any) -> InputError:
        line = f"; line {self.line}" if self.line else ""
        return InputError(f"Record {self.index} of {self.where} (counted from 0{line}): {problem}.", **details)

    def text(self, *names: str) -> str:
        """The text under ``names``, each nested in the one before. It must exist and must not be blank."""
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
        """The list of texts under ``name``; empty if the field is missing."""
        value = self.fields.get(name, [])
        if not isinstance(value, list) or any(map(_problem_of, value)):
            raise self.error(f"field {name!r} is not a list of texts", got=ascii(value)[:80])
        return tuple(value)

    def template(self, prompt: str, subject: str, *, field: str = "prompt") -> str:
        """``prompt``, the text of ``field``, with one ``{}`` in place of the subject.

        If the subject occurs several times, the last occurrence is replaced.
        """
        count = prompt.count(PLACEHOLDER)
        if count == 1:
            return prompt
        before, found, after = prompt.rpartition(subject)
        if count > 1 or not found:
            problem = "the prompt has more than one {}" if count > 1 else "the subject is not in the prompt"
            raise self.error(
                f"{problem} (field {field!r})",
                got=f"subject {subject!r}, prompt {prompt!r}",
                expected="the subject, or one {} in its place",
            )
        return before + PLACEHOLDER + after

    def known_fields(self, known: set[str]) -> None:
        """Refuse a field that looks like a misspelt known one. Other unknown fields are ignored."""
        for name in self.fields:
            if name not in known and "did you mean" in (remedy := closest(name, known - set(self.fields), cutoff=0.8)):
                raise self.error(f"field {name!r} is not known", remedy=remedy)


def _problem_of(value: Any) -> str | None:
    """The reason why ``value`` cannot be given to a model as text, or ``None`` if it can."""
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
    return parse_json(read_text(path), str(path))


_READERS = {".jsonl": json_lines, ".ndjson": json_lines, ".csv": table_rows, ".tsv": table_rows}
"""Readers by suffix. A file with any other suffix is read as a JSON list."""


def read_records(path: Path) -> Iterator[RawRecord]:
    """The records of a JSON list, of JSON lines (``.jsonl``, ``.ndjson``) or of a table (``.csv``, ``.tsv``).

    Raises:
        InputError: there is no such file, it has no records, it does not have the format of its suffix, or a record is
            not an object. The message says which.
    """
    values = list(_READERS.get(path.suffix.lower(), json_list)(path.expanduser()))
    if not values:
        raise InputError(f"{path} is empty.", expected="at least one record")
    for index, (line, value) in enumerate(values):
        raw = RawRecord(path, index, value if isinstance(value, Mapping) else {}, line)
        if not isinstance(value, Mapping):
            raise raw.error("it is not an object", got=type(value).__name__)
        yield raw
