"""Reading the records of a file. Errors name the file, index, line and field."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from factsmith.artifacts.errors import InputError, similar
from factsmith.tasks.facts.files import json_records, parse_json, read_text, table_rows
from factsmith.tasks.facts.texts import TemplateError, filled, invisible, problem_of, stripped, template_of

__all__ = ["RawRecord", "parse_raw", "parse_records", "read_json"]

logger = logging.getLogger(__name__)

R = TypeVar("R")

_MOST_NAMED = 10
"""Most records or fields that one message names."""


@dataclass(frozen=True)
class RawRecord:
    """An object in a file, with its place.

    Texts lose the blanks at both ends. ``null`` is the same as a missing field, as tables that pandas writes have it.

    Attributes:
        where: the file, for messages.
        index: index of the record, from 0.
        fields: the object's fields.
        line: number of the line that it begins on, from 1; ``None`` if that is not known.
        asked: names of the fields that were asked for, whether or not the object has them.
        unseen: characters that cannot be seen, each with the text that has it.
        within: the field that holds the object, if it is a part of a record, with a dot at its end.
    """

    where: Path | str
    index: int
    fields: Mapping[str, Any]
    line: int | None = None
    asked: set[str] = field(default_factory=set)
    unseen: list[str] = field(default_factory=list)
    within: str = ""

    def parts(self, name: str) -> list[RawRecord]:
        """The objects in the list under ``name``; none if the field is missing."""
        value = self.value(name)
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise self.error(f"field {self._named(name)} is not a list of objects", got=ascii(value)[:80])
        return [self._part(one, f"{name}[{place}]") for place, one in enumerate(value)]

    def part(self, name: str) -> RawRecord | None:
        """The object under ``name``; ``None`` if the field is missing."""
        value = self.value(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(f"field {self._named(name)} is not an object", got=ascii(value)[:80])
        return None if value is None else self._part(value, name)

    def _part(self, fields: Mapping[str, Any], name: str) -> RawRecord:
        return replace(self, fields=fields, asked=set(), within=f"{self.within}{name}.")

    def _named(self, *names: str) -> str:
        """A field as messages name it."""
        return repr(self.within + ".".join(names))

    def error(self, problem: str, **details: Any) -> InputError:
        line = f"; line {self.line}" if self.line else ""
        return InputError(f"Record {self.index} of {self.where} (counted from 0{line}): {problem}.", **details)

    def value(self, name: str) -> Any:
        """The value of a field; ``None`` if it is missing."""
        self.asked.add(name)
        return self.fields.get(name)

    def first(self, *names: str) -> str:
        """The first of ``names`` that the object has a value for, or the first one if it has none."""
        self.asked.update(names)
        return next((name for name in names if self.fields.get(name) is not None), names[0])

    def text(self, *names: str) -> str:
        """The text under ``names``, each nested in the one before. It must exist and must not be blank."""
        found = self.optional_text(*names)
        if found is None:
            raise self._missing(names)
        return found

    def optional_text(self, *names: str) -> str | None:
        """The text under ``names``, each nested in the one before; ``None`` if it is missing."""
        self.asked.add(names[0])
        value: Any = self.fields
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return None if value is None else self.checked(value, f"field {self._named(*names)}")

    def checked(self, value: Any, what: str) -> str:
        """``value``, which messages call ``what``, as a text without blanks at its ends. It must not be blank."""
        if problem := problem_of(value):
            raise self.error(f"{what} {problem}", got=ascii(value)[:80])
        text = stripped(value)
        self.unseen.extend(f"U+{ord(one):04X} in {what} of record {self.index}" for one in invisible(text))
        return text

    def texts(self, name: str) -> tuple[str, ...]:
        """The list of texts under ``name``; empty if the field is missing."""
        value = self.value(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.error(f"field {self._named(name)} is not a list of texts", got=ascii(value)[:80])
        return tuple(
            self.checked(one, f"text {place} of the list in field {self._named(name)}")
            for place, one in enumerate(value)
        )

    def target(self, name: str) -> str | None:
        """An object, given as text or as CounterFact's ``{"str": text}``; ``None`` if it is missing."""
        nested = isinstance(self.value(name), Mapping)
        return self.text(name, "str") if nested else self.optional_text(name)

    def template(self, prompt: str, subject: str, *, field: str = "prompt") -> str:
        """The template that ``prompt``, the text of ``field``, stands for. See ``texts.template_of``."""
        try:
            return template_of(prompt, subject)
        except TemplateError as error:
            raise self.error(
                f"{error} (field {self._named(field)})",
                got=f"subject {subject!r}, prompt {prompt!r}",
                expected=error.expected,
                remedy=error.remedy,
            ) from None

    def prompts(self, name: str, subject: str | None = None) -> tuple[str, ...]:
        """The list of prompts under ``name``, with ``subject`` in the place of ``{}``.

        Without a subject, ``{}`` is refused: the prompts are about other subjects.
        """
        return tuple(self.fill(one, subject, field=name) for one in self.texts(name))

    def fill(self, prompt: str, subject: str | None = None, *, field: str) -> str:
        """``prompt``, the text of ``field``, with ``subject`` in the place of ``{}``, as in ``prompts``."""
        try:
            return filled(prompt, subject)
        except TemplateError as error:
            raise self.error(f"{error} (field {field!r})", got=f"prompt {prompt!r}", expected=error.expected) from None

    def _missing(self, names: tuple[str, ...]) -> InputError:
        value: Any = self.fields
        for depth, name in enumerate(names):
            known = [one for one, its in value.items() if its is not None] if isinstance(value, Mapping) else []
            if name not in known:
                got = f"fields {', '.join(map(repr, known))}"[:200] if known else None
                return self.error(f"field {self._named(*names[: depth + 1])} is missing", got=got)
            value = value[name]
        raise AssertionError(names)


def parse_records(
    path: Path,
    parse: Callable[[RawRecord], R | list[R]],
    *,
    unused: Iterable[str] = (),
    others: Mapping[str, Iterable[str]] | None = None,
) -> list[R]:
    """The records of a JSON list, of JSON lines or of a table (``.csv``, ``.tsv``).

    The arguments are those of ``parse_raw``.

    Raises:
        InputError: there is no such file, it has no records, it does not have the format of its suffix, or as in
            ``parse_raw``.
    """
    return parse_raw(_read(path), path, parse, unused=unused, others=others)


def parse_raw(
    raws: Iterable[RawRecord],
    path: Path | str,
    parse: Callable[[RawRecord], R | list[R]],
    *,
    unused: Iterable[str] = (),
    others: Mapping[str, Iterable[str]] | None = None,
) -> list[R]:
    """The records that ``parse`` makes from objects.

    Args:
        raws: the objects, in order.
        path: where they come from, for messages.
        parse: makes a record, or the records of an instance, from an object. The fields that it asks for are the known
            ones.
        unused: further fields of the format, which nothing needs.
        others: fields of other formats, by format. The warning about such fields names the format.

    Raises:
        InputError: a record cannot be parsed or has a field that looks like a misspelt known one. The message names the
            first such record, and tells how many there are.
    """
    records: list[R] = []
    errors: dict[int, InputError] = {}
    asked, present = set(unused), dict[str, int]()
    unseen: list[str] = []
    elsewhere = {field for fields in (others or {}).values() for field in fields}
    for raw in raws:
        try:
            parsed = parse(raw)
            records += parsed if isinstance(parsed, list) else [parsed]
            _check_misspelt(raw, {*asked, *raw.asked}, elsewhere)
        except InputError as error:
            errors[raw.index] = error
        asked |= raw.asked
        unseen += dict.fromkeys(raw.unseen)
        for name, value in raw.fields.items():
            if value is not None:
                present.setdefault(name, raw.index)
    if errors:
        raise _first_of(errors)
    if unseen:
        logger.warning("%s: the model reads characters that cannot be seen: %s", path, _listed(unseen))
    if unread := [name for name in present if name not in asked]:
        named = _listed(list(map(repr, unread)))
        readers = [name for name, fields in (others or {}).items() if set(fields) & set(unread)]
        hint = f"; dataset={readers[0]} does" if readers else ""
        logger.warning("%s: nothing reads the field%s %s%s", path, "s" if len(unread) > 1 else "", named, hint)
    return records


def _first_of(errors: Mapping[int, InputError]) -> InputError:
    """The first error, with the number and the places of the others."""
    (_, first), *others = errors.items()
    what = first.what
    if others:
        more = f"{len(others)} more record{'s' if len(others) > 1 else ''} cannot be used"
        what += f" {more}: {_listed([str(place) for place, _ in others])}."
    return InputError(what, **first.details)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


def _check_misspelt(raw: RawRecord, known: set[str], elsewhere: set[str]) -> None:
    """Refuse a field that looks like a misspelt known one that the record lacks."""
    for name in raw.fields:
        if name not in known | elsewhere and (meant := similar(name, known - set(raw.fields), cutoff=0.8)):
            raise raw.error(f"field {name!r} is not known", remedy=f"did you mean {meant!r}?")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        InputError: there is no such file, or it does not hold JSON.
    """
    return parse_json(read_text(path), str(path))


_TABLES = {".csv", ".tsv"}


def _read(path: Path) -> Iterator[RawRecord]:
    read = table_rows if path.suffix.lower() in _TABLES else json_records
    values = list(read(path.expanduser()))
    if not values:
        raise InputError(f"{path} is empty.", expected="at least one record")
    for index, (line, value) in enumerate(values):
        raw = RawRecord(path, index, value if isinstance(value, Mapping) else {}, line)
        if not isinstance(value, Mapping):
            raise raw.error("it is not an object", got=type(value).__name__)
        yield raw
