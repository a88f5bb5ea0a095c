"""Datasets on the hub, each at one commit, and local folders with the same layout."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode

from factsmith.artifacts.errors import InputError, closest, first_line
from factsmith.tasks.model.hub.repository import Repository, is_identifier
from factsmith.tasks.model.hub.retry import explain, not_cached, with_retries
from factsmith.tasks.model.hub.snapshot import Snapshot, resolve

__all__ = ["Dataset", "find_dataset"]

_CARDS = ("README.md", ".huggingface.yaml")
"""Files that may define which data files form a subset, and how those are read."""


@dataclass(frozen=True)
class Dataset:
    """A dataset on the hub at one commit, or in a local folder.

    Attributes:
        name: the name that the user gave.
        snapshot: the commit on the hub; ``None`` for a local folder.
        folder: the folder that holds the files; ``None`` if they are read over the network.
    """

    name: str
    snapshot: Snapshot | None
    folder: Path | None

    def open(self, subset: str | None) -> Any:
        """The ``datasets.DatasetBuilder`` of a subset. No data is read yet.

        Raises:
            InputError: there is no such subset, the dataset holds no readable data, or the hub does not answer.
        """
        import datasets

        remote = self.snapshot if self.folder is None else None
        where, revision = (self.name, remote.commit) if remote is not None else (str(self.folder), None)
        # If the hub does not answer, `datasets` uses its own cache, which may be of another commit. An empty cache
        # prevents that.
        with self.errors_explained(), tempfile.TemporaryDirectory() as cache:
            load = partial(datasets.load_dataset_builder, where, subset, revision=revision, cache_dir=cache)
            try:
                builder = load() if remote is None else with_retries(remote.repository, load)
            except ValueError as error:
                self._check_subset(subset, datasets.get_dataset_config_names(where, revision=revision))
                raise InputError(f"The dataset {self.name} cannot be opened.", got=first_line(error)) from None
        self._check_subset(subset, builder.builder_configs)
        return builder

    def _check_subset(self, subset: str | None, known: Any) -> None:
        if (subset is None and len(known) > 1) or (subset is not None and subset not in (known or ["default"])):
            raise InputError(
                f"The dataset {self.name} has no subset {subset!r}."
                if subset
                else f"The dataset {self.name} has several subsets.",
                expected=", ".join(sorted(known)) or None,
                remedy=f"set corpus.subset{f': {closest(subset, known)}' if subset and known else ''}",
            )

    def check_complete(self, files: list[str]) -> None:
        """Check that the hub's cache is complete, if the dataset is read from it instead of the hub.

        The data consists of the files in the folders of ``files`` that have the same suffixes.

        Raises:
            InputError: a file is missing, or the cache has no list of the dataset's files.
        """
        if self.snapshot is None or self.folder is None:
            return
        kinds = {(Path(file).relative_to(self.folder).parent, Path(file).suffix) for file in files}
        paths = [Path(name) for name in self.snapshot.sizes]
        if not paths:
            raise not_cached(self.snapshot.repository, "a list of its files")
        missing = [path for path in paths if (path.parent, path.suffix) in kinds and not (self.folder / path).is_file()]
        if missing:
            raise not_cached(self.snapshot.repository, f"{len(missing)} of its files such as {missing[0]}")

    def cards(self) -> list[Path]:
        """The files of the folder that define how the other files are read."""
        assert self.folder is not None
        return [self.folder / name for name in _CARDS if (self.folder / name).is_file()]

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """Turn errors that the dataset or the network causes into errors that a user can act on.

        Raises:
            InputError: replaces the error of a library.
        """
        from datasets.data_files import EmptyDatasetError
        from datasets.exceptions import DataFilesNotFoundError

        try:
            yield
        except InputError:
            raise
        except (DataFilesNotFoundError, EmptyDatasetError):
            if self.snapshot is not None and self.folder is not None:
                raise not_cached(self.snapshot.repository, "its data") from None
            raise InputError(
                f"The dataset {self.name} holds no data that can be read.",
                expected="Parquet, JSON lines, CSV or text files",
            ) from None
        except Exception as error:
            if "scripts are no longer supported" in str(error):
                raise InputError(
                    f"The dataset {self.name} is a script, and Factsmith does not run foreign code.",
                    remedy="use a copy in Parquet; many datasets have one at corpus.revision=refs/convert/parquet",
                ) from None
            if self.snapshot is not None and (explained := explain(self.snapshot.repository, error)) is not None:
                raise explained from None
            if isinstance(error, (OSError, ValueError)):  # Arrow's errors are ValueErrors.
                raise InputError(f"The dataset {self.name} cannot be read.", got=first_line(error)) from None
            raise


def find_dataset(name: str, revision: str | None, *, setting: str = "corpus.repository") -> Dataset:
    """The dataset ``name``. Its revision is resolved to a commit now.

    Args:
        name: ``owner/name`` on the hub, or a folder.
        revision: branch, tag or commit on the hub; ``None`` for its main branch.
        setting: the setting that gives the name, for messages.

    Raises:
        InputError: there is no such dataset or revision, or the hub does not answer.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"The folder {name} has no revisions.", got=revision, remedy="set corpus.revision=null")
        return Dataset(name, None, path.resolve())
    if path.is_file():
        raise InputError(f"{name} is a file, not a dataset.", remedy=f"set corpus=local corpus.path={name}")
    if not is_identifier(name):
        raise InputError(f"There is no dataset {name!r}.", expected="owner/name on the hub, or an existing folder")
    snapshot = resolve(Repository("dataset", name, revision, setting))
    folder = snapshot.fetch(_CARDS)  # This also caches the list of all files, which offline runs need.
    return Dataset(name, snapshot, folder if is_offline_mode() else None)
