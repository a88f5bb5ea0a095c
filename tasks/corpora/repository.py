"""Datasets of the hub, each at one commit, and folders that are laid out as they are."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from factsmith.artifacts.errors import InputError, closest

__all__ = ["Repository", "find_repository"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between one question to the hub and the next, when it does not answer."""

_PATIENCE = 30.0
"""Seconds after which nothing is asked again."""

_CARDS = ("README.md", ".huggingface.yaml")
"""Files that may say which data files make up a subset, and how they are read."""

_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_OVERLOADED = 429

_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""Of whichever HTTP library the hub's client uses; failed connections are such, too."""


@dataclass(frozen=True)
class Repository:
    """A dataset that does not change any more.

    Attributes:
        name: as the user gave it.
        commit: SHA of the commit on the hub; ``None`` for a folder of one's own.
        folder: that holds its files; ``None`` if they are read over the network.
    """

    name: str
    commit: str | None
    folder: Path | None

    def open(self, subset: str | None) -> Any:
        """The ``datasets.DatasetBuilder`` of a subset; no data are read yet.

        Raises:
            InputError: there is no such subset, no data that can be read, or a hub that does not answer.
        """
        import datasets

        where = str(self.folder) if self.folder is not None else self.name
        revision = self.commit if self.folder is None else None
        # `datasets` answers from its own cache, of whatever commit, when the hub does not: it gets an empty one.
        with self.errors_explained(), tempfile.TemporaryDirectory() as cache:
            try:
                builder = _patiently(
                    lambda: datasets.load_dataset_builder(where, subset, revision=revision, cache_dir=cache)
                )
            except ValueError as error:
                self._check_subset(subset, datasets.get_dataset_config_names(where, revision=revision))
                raise InputError(f"The dataset {self.name} cannot be opened.", got=_first_line(error)) from None
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
        """Make sure that the hub's cache holds all the data that lie beside ``files``, when it stands for the hub.

        Raises:
            InputError: some are missing, or nobody can tell.
        """
        if self.commit is None or self.folder is None:
            return
        kinds = {(Path(file).relative_to(self.folder).parent, Path(file).suffix) for file in files}
        try:
            tree = get_cached_repo_tree(self.name, repo_type="dataset", revision=self.commit)
        except CachedRepoTreeNotFoundError:
            raise self._unreachable("the list of its files is not in the cache") from None
        paths = [Path(entry.path) for entry in tree]
        missing = [path for path in paths if (path.parent, path.suffix) in kinds and not (self.folder / path).is_file()]
        if missing:
            raise self._unreachable(f"{len(missing)} of its files are not in the cache, {missing[0]} is one")

    def cards(self) -> list[Path]:
        """Files of a folder that say how the others are read."""
        assert self.folder is not None
        return [self.folder / name for name in _CARDS if (self.folder / name).is_file()]

    @contextmanager
    def errors_explained(self) -> Iterator[None]:
        """While open, what goes wrong because of the dataset or the network is told to the user.

        Raises:
            InputError: instead of what the libraries raise.
        """
        from datasets.data_files import EmptyDatasetError
        from datasets.exceptions import DataFilesNotFoundError

        try:
            yield
        except GatedRepoError:
            raise InputError(
                f"The dataset {self.name} is gated.",
                remedy="ask for access on its page, then log in with `hf auth login`, or set HF_TOKEN",
            ) from None
        except RepositoryNotFoundError:
            raise InputError(
                f"There is no dataset {self.name!r} on the hub, or it is private.",
                remedy="set corpus.repository, or log in with `hf auth login`",
            ) from None
        except RevisionNotFoundError:
            raise InputError(
                f"The dataset {self.name} has no such revision.",
                remedy="set corpus.revision to a branch, tag or commit",
            ) from None
        except (DataFilesNotFoundError, EmptyDatasetError):
            if self.commit is not None and self.folder is not None:
                raise self._unreachable("its data are not in the cache") from None
            raise InputError(
                f"The dataset {self.name} holds no data that can be read.",
                expected="Parquet, JSON lines, CSV or text files",
            ) from None
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            raise InputError(
                f"The dataset {self.name} is a script, and foreign code is not run.",
                remedy="find a copy in Parquet: many datasets have one as corpus.revision=refs/convert/parquet",
            ) from None
        except (OSError, _HTTPError) as error:
            if not _no_answer(error):
                raise InputError(f"The dataset {self.name} cannot be read.", got=_first_line(error)) from None
            raise self._unreachable(f"{type(error).__name__}: {_first_line(error)}") from None

    def _unreachable(self, got: str) -> InputError:
        offline = constants.HF_HUB_OFFLINE
        return InputError(
            f"The dataset {self.name} is not here and the hub is off (HF_HUB_OFFLINE)."
            if offline
            else f"The hub does not answer for dataset {self.name}.",
            got=got,
            remedy=f"where there is a network, `hf download --repo-type dataset {self.name}`, and bring the folder "
            "here (corpus.repository=FOLDER); or bring any text: corpus=local corpus.path=FILE",
        )


def find_repository(name: str, revision: str | None) -> Repository:
    """The dataset ``name``, with its commit looked up now.

    Args:
        name: ``owner/name`` on the hub, or a folder.
        revision: branch, tag or commit on the hub; ``None`` for its main branch.

    Raises:
        InputError: no such dataset or revision, or a hub that does not answer.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"The folder {name} has no revisions.", got=revision, remedy="set corpus.revision=null")
        return Repository(name, None, path.resolve())
    if path.is_file():
        raise InputError(f"{name} is a file, not a dataset.", remedy=f"set corpus=local corpus.path={name}")
    unknown = InputError(f"There is no dataset {name!r}.", expected="owner/name on the hub, or a folder that is there")
    if not _NAME.fullmatch(name):
        raise unknown
    with Repository(name, "", None).errors_explained():
        try:
            commit = None
            if not constants.HF_HUB_OFFLINE:
                commit = _patiently(lambda: HfApi().dataset_info(name, revision=revision)).sha
            # Notes in the hub's cache what the revision is and which files it has; offline, that is read from there.
            # Alone it is not enough: when the hub happens to be busy, it answers with an old note.
            snapshot = _patiently(
                lambda: snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(_CARDS))
            )
        except HFValidationError:
            raise unknown from None
    if commit is None:
        return Repository(name, Path(snapshot).name, Path(snapshot))
    return Repository(name, commit, None)


def _patiently(ask: Callable[[], T]) -> T:
    """What the hub answers, asked again after a while if it does not."""
    started = time.monotonic()
    for delay in () if constants.HF_HUB_OFFLINE else _DELAYS:
        try:
            return ask()
        except (OSError, _HTTPError) as error:
            # The libraries ask again themselves when a server says that it is busy.
            if not _no_answer(error) or time.monotonic() - started > _PATIENCE:
                raise
            logger.info("The hub does not answer; asking again in %g s.", delay)
            time.sleep(delay)
    return ask()


def _no_answer(error: BaseException) -> bool:
    """Whether it is the network's or the server's fault, and may pass."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else None
        return status is None or status == _OVERLOADED or status >= 500
    return isinstance(error, (ConnectionError, TimeoutError, LocalEntryNotFoundError, _HTTPError))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
