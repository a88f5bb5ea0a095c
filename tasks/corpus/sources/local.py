"""Corpus text from a local file: JSON lines, plain text or Parquet."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.corpus.source import order_seed
from factsmith.tasks.decoder.text import is_unicode

__all__ = ["LocalCorpus", "open_local", "open_source"]


def open_source(settings: CorpusSettings, checksum: Callable[[Path], str]) -> LocalCorpus:
    """The documents in ``corpus.path``.

    Raises:
        InputError: there is no such file, or its suffix is not known.
    """
    if settings.path is None:
        raise InputError(f"corpus={settings.name} needs a file.", remedy="set corpus.path=FILE")
    return open_local(settings.path.expanduser(), field=settings.field, seed=order_seed(settings), checksum=checksum)


def open_local(path: Path, *, field: str, seed: int | None, checksum: Callable[[Path], str]) -> LocalCorpus:
    """The corpus in ``path``. The suffix of the file determines its format.

    Args:
        path: ``.jsonl`` (one object per line), ``.txt`` (documents separated by blank lines) or ``.parquet``.
        field: field or column that holds the text; unused for ``.txt``.
        seed: seed of the order of documents; ``None`` for the order of the file.
        checksum: returns the SHA-256 of a file.

    Raises:
        InputError: there is no such file, or its suffix is not known.
    """
    if path.suffix not in _READERS:
        raise InputError(
            f"The corpus {path} cannot be read.",
            got=f"suffix {path.suffix!r}",
            expected=f"one of {', '.join(sorted(_READERS))}",
        )
    if not path.is_file():
        raise InputError(f"The corpus {path} does not exist.", remedy="set corpus.path to a file")
    return _READERS[path.suffix](path, field, seed, checksum)


class LocalCorpus(ABC):
    """The documents of one file, in the order of the file or of a seeded permutation."""

    def __init__(self, path: Path, field: str, seed: int | None, checksum: Callable[[Path], str]) -> None:
        self.path = path
        self.field = field
        self.seed = seed
        self.checksum = checksum

    def recipe(self) -> dict[str, Any]:
        return {
            "source": "local",
            "format": self.path.suffix[1:],
            "sha256": self.checksum(self.path),
            "field": self.field,
            "seed": self.seed,
        }

    def document(self, place: int) -> tuple[int, str] | None:
        if place >= len(self._order):
            return None
        index = int(self._order[place])
        return index, self.text(index)

    @cached_property
    def _order(self) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.count)
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed)).numpy()

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of documents."""

    @abstractmethod
    def text(self, index: int) -> str:
        """The text of the document at ``index`` in the file."""


class _Lines(LocalCorpus):
    """Documents located by their byte offsets in the file, so that only the requested ones are loaded."""

    def _begins(self, line: bytes, after_blank: bool) -> bool:
        raise NotImplementedError

    @cached_property
    def _spans(self) -> np.ndarray:
        """Byte offsets of the start and the end of each document, and the number of its first line, (documents, 3)."""
        starts, ends, lines, position, after_blank = [], [], [], 0, True
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                blank = not line.strip()
                if not blank and self._begins(line, after_blank):
                    starts.append(position)
                    ends.append(position)
                    lines.append(number)
                position += len(line)
                if not blank:
                    ends[-1] = position
                after_blank = blank
        return np.array([starts, ends, lines], dtype=np.int64).T

    @property
    def count(self) -> int:
        return len(self._spans)

    def _bytes(self, index: int) -> bytes:
        start, end, _ = self._spans[index]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _place(self, index: int) -> str:
        """Where a document begins, for messages."""
        return f"Line {self._spans[index][2]} of {self.path}"

    def _decode(self, index: int) -> str:
        try:
            return self._bytes(index).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._place(index)} is not UTF-8.", got=str(error)) from None


class JsonLinesCorpus(_Lines):
    """One JSON object per line."""

    def _begins(self, line: bytes, after_blank: bool) -> bool:
        return True

    def text(self, index: int) -> str:
        try:
            record = json.loads(self._decode(index))
        except ValueError as error:
            raise InputError(f"{self._place(index)} is not JSON.", got=str(error)) from None
        if not isinstance(record, dict) or not isinstance(record.get(self.field), str):
            known = (
                [name for name, value in record.items() if isinstance(value, str)] if isinstance(record, dict) else []
            )
            raise InputError(
                f"{self._place(index)} has no text in field {self.field!r}.",
                got=f"text in {', '.join(known)}" if known else type(record).__name__,
                remedy="set corpus.field" + (f": {closest(self.field, known)}" if known else ""),
            )
        if not is_unicode(record[self.field]):
            raise InputError(f"{self._place(index)} is not Unicode text.", got=f"half of a character in {self.field!r}")
        return str(record[self.field])


class TextCorpus(_Lines):
    """Plain text; a blank line ends a document."""

    def _begins(self, line: bytes, after_blank: bool) -> bool:
        return after_blank

    def text(self, index: int) -> str:
        return self._decode(index)


class ParquetCorpus(LocalCorpus):
    """One document per row."""

    @cached_property
    def _column(self) -> pa.ChunkedArray:
        try:
            schema = pq.read_schema(self.path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"The corpus {self.path} is not Parquet.", got=str(error)) from None
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        if self.field not in texts:
            raise InputError(
                f"The corpus {self.path} has no text in column {self.field!r}.",
                got=f"text in {', '.join(texts) or 'no column'}",
                remedy=f"set corpus.field: {closest(self.field, texts)}" if texts else None,
            )
        return pq.read_table(self.path, columns=[self.field]).column(0)

    @property
    def count(self) -> int:
        return len(self._column)

    def text(self, index: int) -> str:
        text = self._column[index].as_py()
        if text is None:
            raise InputError(f"Row {index} of {self.path} has no text in column {self.field!r}.")
        return str(text)


_READERS: dict[str, type[LocalCorpus]] = {
    ".jsonl": JsonLinesCorpus,
    ".txt": TextCorpus,
    ".parquet": ParquetCorpus,
}
