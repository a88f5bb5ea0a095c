"""Corpus text from a dataset of the hub, or a folder that is laid out as one, read only as far as it is needed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.corpus.hub_dataset import Dataset, find_dataset
from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.corpus.source import order_seed, release

__all__ = ["HubCorpus", "open_hub", "open_source", "parquet_rows"]

logger = logging.getLogger(__name__)

_RECENT = 1024
"""Documents kept behind the stream. Whoever tokenizes reads some ahead, and asks for them again after the shard."""


def open_source(settings: CorpusSettings, checksum: Callable[[Path], str]) -> HubCorpus:
    """The documents in ``corpus.repository``.

    Raises:
        InputError: no such dataset, revision, subset, split or field, or the hub does not answer.
    """
    if settings.repository is None:
        raise InputError(f"corpus={settings.name} needs a dataset.", remedy="set corpus.repository=OWNER/NAME")
    return open_hub(
        settings.repository,
        revision=settings.revision,
        subset=settings.subset,
        split=settings.split,
        field=settings.field,
        seed=order_seed(settings),
        pool=settings.pool,
        checksum=checksum,
    )


def open_hub(
    repository: str,
    *,
    revision: str | None,
    subset: str | None,
    split: str,
    field: str,
    seed: int | None,
    pool: int,
    checksum: Callable[[Path], str],
) -> HubCorpus:
    """The corpus in ``repository``.

    Args:
        repository: ``owner/name`` on the hub, or a folder of Parquet, JSON lines, CSV or text files.
        revision: branch, tag or commit on the hub; ``None`` for its main branch.
        subset: of the dataset (``datasets`` says configuration); ``None`` if it has one only.
        split: of the subset.
        field: of a row that holds the text.
        seed: of the documents' order; ``None`` for that of the dataset.
        pool: documents that the stream is shuffled among.
        checksum: gives the SHA-256 of a file.

    Raises:
        InputError: no such dataset, revision, subset, split or field, or a hub that does not answer.
    """
    found = find_dataset(repository, revision)
    corpus = HubCorpus(found, subset=subset, split=split, field=field, seed=seed, pool=pool, checksum=checksum)
    if found.snapshot is None or found.folder is None:  # offline, what has been tokenized already can still be used
        corpus.check()
    return corpus


class HubCorpus:
    """Rows of a dataset that hold any text, as they stand or shuffled as they stream by.

    A stream has no places to jump to: documents are cheap in ascending order, and an earlier one that is no longer
    kept starts the stream again. The index of a document is the number of its row in the stream.

    Args:
        dataset: where they are.
        subset: of the dataset.
        split: of the subset, or several as ``a+b``.
        field: of a row that holds the text.
        seed: of the documents' order; ``None`` for that of the dataset.
        pool: documents that the stream is shuffled among.
        checksum: gives the SHA-256 of a file.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        subset: str | None,
        split: str,
        field: str,
        seed: int | None,
        pool: int,
        checksum: Callable[[Path], str],
    ) -> None:
        self.dataset = dataset
        self.subset = subset
        self.split = split
        self.field = field
        self.seed = seed
        self.pool = pool
        self.checksum = checksum
        self._restart()

    def recipe(self) -> dict[str, Any]:
        dataset = self.dataset
        if dataset.snapshot is not None:
            data: dict[str, Any] = {"repository": dataset.name, "commit": dataset.snapshot.commit}
            data |= {"subset": self.subset, "split": self.split}
        else:
            # What the files are called does not matter, only which ones are read, in which order and how.
            data = {
                "files": [self.checksum(Path(file)) for file in self._files],
                "format": self._format,
                "cards": [self.checksum(card) for card in dataset.cards()],
            }
        shuffled = {"pool": self.pool, "datasets": release("datasets")} if self.seed is not None else {}
        return {"source": "hub", **data, "field": self.field, "seed": self.seed, **shuffled}

    def document(self, place: int) -> tuple[int, str] | None:
        if place < self._reached - len(self._recent):
            self._restart()
        while place >= self._reached:
            found = next(self._stream, None)
            if found is None:
                return None
            self._recent.append(found)
            self._reached += 1
        return self._recent[place - self._reached]

    def check(self) -> None:
        """Look whether subset, split and field are there, as far as can be told without reading the text.

        Raises:
            InputError: one is not.
        """
        _ = self._rows

    def _restart(self) -> None:
        self._stream = self._documents()
        self._recent: deque[tuple[int, str]] = deque(maxlen=_RECENT)
        self._reached = 0

    def _documents(self) -> Iterator[tuple[int, str]]:
        """Index and text of one document after the other."""
        for index, row in enumerate(self._read()):
            if self.field not in row:
                raise self._no_field(f"row {index}", [name for name, value in row.items() if isinstance(value, str)])
            text = row[self.field]
            if text is not None and not isinstance(text, str):
                raise InputError(
                    f"Field {self.field!r} of {self.dataset.name} holds no text.",
                    got=f"{type(text).__name__} in row {index}",
                    remedy="set corpus.field",
                )
            if text and not text.isspace():  # WikiText, for one, has a row a line, and blank ones between paragraphs
                yield index, text

    def _read(self) -> Iterator[dict[str, Any]]:
        rows = self._rows
        if self.seed is not None:
            logger.info("%s: reading %s rows to shuffle among", self.dataset.name, f"{self.pool:,}")
            rows = rows.shuffle(seed=self.seed, buffer_size=self.pool)
        with self.dataset.errors_explained():
            yield from rows

    @cached_property
    def _builder(self) -> Any:
        return self.dataset.open(self.subset)

    @property
    def _format(self) -> str:
        """What `datasets` calls the reader of these files: parquet, json, csv, text, ..."""
        return type(self._builder.config).__module__.rpartition(".")[2]

    @cached_property
    def _files(self) -> list[str]:
        """Data files of the split, in the order in which they are read."""
        known = {str(name): files for name, files in self._builder.config.data_files.items()}
        names = [name.strip() for name in self.split.split("+")]
        for name in names:
            if name not in known:
                raise InputError(
                    f"The dataset {self.dataset.name} has no split {name!r}.",
                    expected=", ".join(known),
                    remedy=f"set corpus.split: {closest(name, known)}",
                )
        return [str(file) for name in names for file in known[name]]

    @cached_property
    def _rows(self) -> Any:
        """The ``datasets.IterableDataset``, without columns that nobody asks for where the format allows it."""
        from datasets import IterableDataset

        self.dataset.check_complete(self._files)
        with self.dataset.errors_explained():
            rows = self._builder.as_streaming_dataset(self.split)
            if rows.features is None:  # JSON lines tell with the first row
                return rows
            if self.field not in rows.features:
                texts = [name for name, kind in rows.features.items() if getattr(kind, "dtype", "").endswith("string")]
                raise self._no_field("a row", texts)
            if self._format == "parquet":
                return IterableDataset.from_generator(
                    parquet_rows, gen_kwargs={"files": self._files, "field": self.field}
                )
            return rows.select_columns([self.field])

    def _no_field(self, where: str, known: list[str]) -> InputError:
        return InputError(
            f"The dataset {self.dataset.name} has no field {self.field!r}.",
            got=f"text in {', '.join(known) or 'no field'} of {where}",
            remedy=f"set corpus.field: {closest(self.field, known)}" if known else None,
        )


def parquet_rows(files: list[str], field: str) -> Iterator[dict[str, Any]]:
    """One column of Parquet files, fetched a row group at a time in the thread that asks.

    The reader of `datasets` has Arrow fetch ahead in threads of its own; a process that leaves while they are at it
    crashes or hangs (pyarrow 25, apache/arrow#45214), and it reads more than the column.

    Args:
        files: paths or URLs that fsspec knows.
        field: name of the column.
    """
    for file in files:
        with fsspec.open(file, "rb") as opened, pq.ParquetFile(opened, pre_buffer=False) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[field], use_threads=False)
                yield from table.to_pylist()
