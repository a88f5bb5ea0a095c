"""One commit of a repository on the hub, and the download of its files into the cache.

The cache is the one that all Hugging Face libraries share (``HF_HOME``, ``HF_HUB_CACHE``). With ``HF_HUB_OFFLINE=1``,
no request is made.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, is_offline_mode, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from factsmith.artifacts.errors import InputError
from factsmith.tasks.model.hub.repository import Repository
from factsmith.tasks.model.hub.retry import not_cached, with_retries

__all__ = ["Snapshot", "resolve"]

logger = logging.getLogger(__name__)

_TIMEOUT = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve(repository: Repository) -> Snapshot:
    """The commit that the repository's revision points to now, or, offline, pointed to at the last request.

    Raises:
        InputError: there is no such repository or revision, it may not be read, or the hub does not answer.
    """

    def commit() -> str:
        if not is_offline_mode() and not _COMMIT.fullmatch(repository.revision or ""):
            _check_reachable(repository, repository.revision)
        found = HfApi().resolve_revision(
            repository.identifier,
            repo_type=repository.kind,
            revision=repository.revision,
            local_files_only=is_offline_mode(),
        )
        return found.resolved

    return Snapshot(repository, with_retries(repository, commit))


def _check_reachable(repository: Repository, revision: str | None) -> None:
    """Check that the hub answers. This request has a time limit; the ones that follow it would wait forever."""
    HfApi().repo_info(repository.identifier, repo_type=repository.kind, revision=revision, timeout=_TIMEOUT)


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository.

    Attributes:
        repository: the repository.
        commit: 40 hexadecimal digits.
    """

    repository: Repository
    commit: str

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every file of the commit in bytes, by name. It is known after the first fetch.

        The sizes are empty if the program that filled the cache did not store a list of files.
        """
        try:
            files = get_cached_repo_tree(
                self.repository.identifier, repo_type=self.repository.kind, revision=self.commit
            )
        except CachedRepoTreeNotFoundError:
            return {}
        return {file.path: file.size for file in files}

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Fetch the files that match ``patterns`` if the cache lacks them. Returns the commit's folder in the cache.

        Raises:
            InputError: the files are not in the cache and cannot be fetched.
        """
        try:
            folder = self._snapshot(patterns, local=True)
        except LocalEntryNotFoundError as error:
            if is_offline_mode():
                raise not_cached(self.repository) from error
        else:
            # Without a list of files, it is not known whether the cache has all files that match.
            if self.sizes or is_offline_mode():
                return folder
        return with_retries(self.repository, lambda: self._download(patterns))

    def fetch_large(self, names: Sequence[str]) -> Path:
        """``fetch`` for large files: logs their size, and checks first that they fit the disk.

        Raises:
            InputError: the files are not in the cache and cannot be fetched, or do not fit the disk.
        """
        folder = self.fetch([])
        missing = [name for name in names if not (folder / name).is_file()]
        if missing and not is_offline_mode():
            size = sum(self.sizes.get(name, 0) for name in missing)
            if size > _free():
                raise _no_room(self.repository, size)
            logger.info(
                "fetching %s from %s (commit %s), %s MB",
                ", ".join(missing) if len(missing) < 4 else f"{len(missing)} files",
                self.repository.identifier,
                self.commit[:12],
                f"{size / 1e6:,.1f}",
            )
        try:
            return self.fetch(names)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise _no_room(self.repository, sum(self.sizes.get(name, 0) for name in missing)) from None

    def _download(self, patterns: Sequence[str]) -> Path:
        _check_reachable(self.repository, self.commit)
        return self._snapshot(patterns, local=False)

    def _snapshot(self, patterns: Sequence[str], *, local: bool) -> Path:
        folder = snapshot_download(
            self.repository.identifier,
            repo_type=self.repository.kind,
            revision=self.commit,
            allow_patterns=list(patterns),
            local_files_only=local,
            tqdm_class=_Bar,
        )
        return Path(folder)


class _Bar(tqdm):
    """A progress bar that is shown only on a terminal. Elsewhere, the log line of ``fetch_large`` replaces it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        disable = kwargs.pop("disable", None) or not sys.stderr.isatty()
        super().__init__(*args, disable=disable, **kwargs)  # type: ignore[no-untyped-call]


def _no_room(repository: Repository, size: int) -> InputError:
    return InputError(
        f"{repository.identifier} does not fit the disk that holds {constants.HF_HUB_CACHE}.",
        got=f"{_free() / 1e6:,.0f} MB free",
        expected=f"{size / 1e6:,.0f} MB",
        remedy="free some space, or set HF_HOME to a folder on another disk",
    )


def _free() -> int:
    """Free bytes on the disk of the cache, which may not exist yet."""
    cache = Path(constants.HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
