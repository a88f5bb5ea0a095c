"""Corpus text from a dataset on the hub, or a local folder with the same layout. It is read only as far as needed."""

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
"""Number of documents kept after they were read. The tokenizer reads ahead, and the next shard reads those again."""


def open_source(settings: CorpusSettings, checksum: Callable[[Path], str]) -> HubCorpus:
    """The documents in ``corpus.repository``.

    Raises:
        InputError: there is no such dataset, revision, subset, split or field, or the hub does not answer.
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
        subset: subset of the dataset (called configuration in ``datasets``); ``None`` if it has only one.
        split: split of the subset, or several as ``a+b``.
        field: field of a row that holds the text.
        seed: seed of the order of documents; ``None`` for the dataset's order.
        pool: number of rows in the shuffle buffer.
        checksum: returns the SHA-256 of a file.

    Raises:
        InputError: there is no such dataset, revision, subset, split or field, or the hub does not answer.
    """
    found = find_dataset(repository, revision)
    corpus = HubCorpus(found, subset=subset, split=split, field=field, seed=seed, pool=pool, checksum=checksum)
    # Offline, the check is left out: shards in the store can be used even if the dataset is not in the cache.
    if found.snapshot is None or found.folder is None:
        corpus.check()
    return corpus


class HubCorpus:
    """The rows of a dataset that contain text, in the dataset's order or shuffled as they are streamed.

    A stream has no random access. Documents are cheap in ascending order. An earlier document that is no longer kept
    restarts the stream. The index of a document is the number of its row in the stream.

    Args:
        dataset: the dataset.
        subset: subset of the dataset; ``None`` if it has only one.
        split: split of the subset, or several as ``a+b``.
        field: field of a row that holds the text.
        seed: seed of the order of documents; ``None`` for the dataset's order.
        pool: number of rows in the shuffle buffer.
        checksum: returns the SHA-256 of a file.
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
            # The names of the files do not matter, only which files are read, in which order and how.
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
        """Check that subset, split and field exist, as far as this is possible without reading the text.

        Raises:
            InputError: one of them does not exist.
        """
        _ = self._rows

    def _restart(self) -> None:
        self._stream = self._documents()
        self._recent: deque[tuple[int, str]] = deque(maxlen=_RECENT)
        self._reached = 0

    def _documents(self) -> Iterator[tuple[int, str]]:
        """The index and text of each document, in order."""
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
            # WikiText, for example, has one row per line, and blank rows between paragraphs.
            if text and not text.isspace():
                yield index, text

    def _read(self) -> Iterator[dict[str, Any]]:
        rows = self._rows
        if self.seed is not None:
            logger.info("%s: filling the shuffle buffer with %s rows", self.dataset.name, f"{self.pool:,}")
            rows = rows.shuffle(seed=self.seed, buffer_size=self.pool)
        with self.dataset.errors_explained():
            yield from rows

    @cached_property
    def _builder(self) -> Any:
        return self.dataset.open(self.subset)

    @property
    def _format(self) -> str:
        """The name of the reader of these files in `datasets`: parquet, json, csv, text, ..."""
        return type(self._builder.config).__module__.rpartition(".")[2]

    @cached_property
    def _files(self) -> list[str]:
        """The data files of the split, in the order in which they are read."""
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
        """The ``datasets.IterableDataset``, without unused columns if the format allows that."""
        from datasets import IterableDataset

        self.dataset.check_complete(self._files)
        with self.dataset.errors_explained():
            rows = self._builder.as_streaming_dataset(self.split)
            if rows.features is None:  # The fields of JSON lines are known only after the first row is read.
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


def parquet_rows(files: list[str], field: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of Parquet files, read one row group at a time, in the calling thread.

    The reader of `datasets` lets Arrow prefetch in background threads. A process that exits while these threads run
    crashes or hangs (pyarrow 25, apache/arrow#45214). That reader also reads more than the column.

    Args:
        files: paths or URLs that fsspec supports.
        field: name of the column; ``None`` for all columns.
    """
    columns = None if field is None else [field]
    for file in files:
        with fsspec.open(file, "rb") as opened, pq.ParquetFile(opened, pre_buffer=False) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=columns, use_threads=False)
                yield from table.to_pylist()
