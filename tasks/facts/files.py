"""Reading a file of records as text, as JSON or as the rows of a table. Errors name the place in the file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import InputError, closest

__all__ = ["json_records", "parse_json", "read_text", "table_rows"]

DELIMITERS = (",", ";", "\t")
SEPARATOR = "|"
"""Separates the prompts in one cell of a table."""

_LINES = {".jsonl", ".ndjson"}
_COLUMNS = ("subject", "prompt", "target_new")
_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts", "questions")
_OPTIONAL_COLUMNS = ("target_true", *_LISTS)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        InputError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist.", remedy="check the path; relative paths start from the working directory"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text.", got=str(error), remedy="save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read.", got=error.strerror) from None
    except ValueError as error:  # The path is not valid on any file system.
        raise InputError(f"{str(path)!r} cannot be read.", got=str(error)) from None


def parse_json(text: str, what: str) -> Any:
    """The JSON value in ``text``. ``what`` names the text in messages.

    Raises:
        InputError: the text is not JSON, or an object has a field twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON.", got=str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the field {ascii(twice)[:80]} is given twice in one object")
    return found


def json_records(path: Path) -> Iterator[tuple[int | None, Any]]:
    """The values of a JSON list or of JSON lines, each with its line number, from 1, if it is known.

    The content decides which of the two it is: a file of JSON lines may be called ``.json``. Blank lines are skipped.

    Raises:
        InputError: the file is neither; names the line.
    """
    text = read_text(path)
    try:
        whole = parse_json(text, str(path))
    except InputError:
        if path.suffix.lower() not in _LINES and not _first_line_is_object(text):
            raise
        yield from _json_lines(text, path)
        return
    if isinstance(whole, list):
        yield from ((None, value) for value in whole)
    else:
        yield 1, whole


def _first_line_is_object(text: str) -> bool:
    lines = (line for line in text.split("\n") if line.strip())
    try:
        return isinstance(json.loads(next(lines, "")), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(text: str, path: Path) -> Iterator[tuple[int | None, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, f"Line {number} of {path}")


def table_rows(path: Path) -> Iterator[tuple[int | None, Any]]:
    """The rows of a delimited table (RFC 4180) as objects, each with the number of its first line, from 1.

    The first row names the columns. The delimiter is the one of ``DELIMITERS`` that finds the most required columns in
    that row. A blank optional cell counts as missing, and a row of blank cells is skipped. A cell of prompts may hold
    several, separated by ``SEPARATOR``.

    Raises:
        InputError: a required column is missing, a column occurs twice, a row has a different number of cells than the
            header, or a quote is misplaced.
    """
    text = read_text(path)
    delimiter = max(DELIMITERS, key=lambda one: len({*_COLUMNS} & set(_header(text, one))))
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if names is None:
                    names = _checked([cell.strip() for cell in cells], path)
                else:
                    yield line, _record(names, cells, f"Line {line} of {path}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"Line {line} of {path} is not a row of a table.",
            got=str(error),
            expected=f"cells separated by {delimiter!r}, with quotes doubled inside quoted cells",
        ) from None


def _header(text: str, delimiter: str) -> list[str]:
    try:
        for cells in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True):
            if any(cell.strip() for cell in cells):
                return [cell.strip() for cell in cells]
    except csv.Error:
        pass
    return []


def _checked(names: list[str], path: Path) -> list[str]:
    given = [name for name in names if name]
    for name in given:
        if given.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}.", expected="a first row that names each column once")
    for name in _COLUMNS:
        if name not in given:
            unknown = set(given) - {*_COLUMNS, *_OPTIONAL_COLUMNS}
            found = closest(name.casefold(), {one.casefold() for one in unknown}) if unknown else None
            raise InputError(
                f"{path} has no column {name!r}.",
                got=f"columns {', '.join(map(repr, given))}"[:200],
                expected=f"a first row that names {', '.join(_COLUMNS)}",
                remedy=found if found and found.startswith("did") else None,
            )
    return names


def _record(names: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(names):
        raise InputError(
            f"{where} has {len(cells)} cells.",
            expected=f"{len(names)} cells, as in the first row",
            remedy="put a cell that contains the delimiter in double quotes",
        )
    record: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if name in _LISTS:
            record[name] = [prompt.strip() for prompt in cell.split(SEPARATOR)] if cell.strip() else []
        elif name and (cell.strip() or name in _COLUMNS):
            record[name] = cell
    return record
