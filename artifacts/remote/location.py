"""A folder that fsspec reaches, with errors that a user can act on."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import fsspec

from factsmith.artifacts.errors import FactsmithError, InputError, causes, first_line
from factsmith.artifacts.remote.messages import LATER, message, plain, remedy

__all__ = ["AT_ONCE", "Location", "UnreachableError"]

AT_ONCE = 8
"""Most files that are moved at once."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The extra of Factsmith that installs what a protocol needs."""

_TIMEOUT = 20
"""Seconds that a server may take to answer."""

_ATTEMPTS = 2
"""How often a request is made before it counts as failed."""

_LIBRARIES = {
    "aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "httpx", "huggingface_hub",
    "requests", "s3fs", "urllib3",
}  # fmt: skip
"""Packages whose errors say that a location cannot be used."""


class UnreachableError(InputError):
    """A location cannot be used now, and may be later: a server that fails or does not answer."""


class Location:
    """A folder that fsspec reaches. Names of files are relative to it and separated by slashes.

    Attributes:
        url: the URL, for messages.
        fs: the file system of fsspec.
        protocol: its name.
        is_local: whether it is a folder of this machine, or one that is mounted.
        commits: whether several files can be written in one commit, as on the hub, where each write would be one.
    """

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self.url = url.rstrip("/")
        self.fs = filesystem
        self._path = path.rstrip("/")
        names = filesystem.protocol
        self.protocol: str = names if isinstance(names, str) else names[0]
        self.is_local = self.protocol in ("file", "local")
        self.commits = self.protocol == "hf"

    @classmethod
    def open(cls, url: str) -> Self:
        """The folder at ``url``: a path, or any URL that fsspec understands. Nothing is read yet.

        Raises:
            InputError: the URL is not understood, holds credentials, or needs a package that is not installed.
        """
        try:
            parts = urlsplit(url) if "://" in url else None
        except ValueError as error:
            raise InputError(f"The location {plain(url)} cannot be used.", got=first_line(error)) from None
        if not url.strip() or (parts and parts.scheme in _EXTRAS and not parts.netloc):
            raise InputError(
                f"The location {url!r} cannot be used.",
                got="no name of a bucket" if url.strip() else "nothing",
                expected="a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or hf://datasets/OWNER/NAME",
            )
        if "::" in url or (parts and (parts.query or "@" in parts.netloc)):
            raise InputError(
                f"The location {plain(url)} cannot be used.",
                got="a chain of file systems" if "::" in url else "a URL with credentials or a query",
                expected="a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or hf://datasets/OWNER/NAME",
                remedy="give credentials in the environment, as the library of the protocol reads them",
            )
        protocol = parts.scheme if parts else "file"
        options: dict[str, Any] = (
            {"auto_mkdir": True} if protocol in ("file", "local") else {"use_listings_cache": False}
        )
        if _EXTRAS.get(protocol) == "s3":
            options["config_kwargs"] = {
                "connect_timeout": _TIMEOUT,
                "read_timeout": _TIMEOUT,
                "retries": {"max_attempts": _ATTEMPTS, "mode": "standard"},
            }
        try:
            place = url if parts else f"file://{os.path.abspath(os.path.expanduser(url))}"
            filesystem, path = fsspec.url_to_fs(place, **options)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            raise InputError(
                f"The package that reads {protocol}:// is not installed.",
                got=first_line(error),
                remedy=f"pip install 'factsmith[{extra}]'" if extra else None,
            ) from None
        except Exception as error:  # Each of fsspec's protocols raises its own for what it does not understand.
            raise InputError(f"The location {url} cannot be used.", got=plain(message(error))) from None
        if _EXTRAS.get(protocol) == "s3":
            filesystem.retries = 1  # s3fs would repeat the attempts of the client below it.
        return cls(url, filesystem, path)

    def check(self) -> None:
        """Check that the location answers, and that its bucket or repository exists.

        Raises:
            InputError: it does not.
        """
        with self.explained("read"):
            self.fs.invalidate_cache()
            try:
                if self._container:
                    self.fs.info(self._container)
            except FileNotFoundError:
                what = "repository" if self.commits else "bucket"
                raise InputError(
                    f"{self.url} cannot be used.",
                    got=f"there is no {what} {self._container}, or you may not see it",
                    remedy=f"check the name, or create the {what} first",
                ) from None

    @property
    def _container(self) -> str:
        """What must exist before anything can be written: a bucket, or a repository on the hub."""
        if self.is_local or self.protocol == "memory":
            return ""
        parts = self._path.split("/")
        typed = self.commits and parts[0] in ("datasets", "spaces", "models")
        return "/".join(parts[: 1 + self.commits + typed])

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; ``None`` if there is no such file.

        Raises:
            InputError: the location cannot be read.
        """
        with self.explained("read"):
            try:
                # One request: s3fs would ask for the size first, to read parts at once.
                single = {"max_concurrency": 1} if self.protocol in ("s3", "s3a") else {}
                found: bytes = self.fs.cat_file(self.join(name), **single)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
            return found

    def files(self, folder: str) -> dict[str, int]:
        """The bytes of each file below ``folder``, by its name in the folder. Empty if there is no such folder.

        Raises:
            InputError: the location cannot be read.
        """
        return {name: int(info["size"] or 0) for name, info in self.found(folder).items()}

    def found(self, folder: str) -> dict[str, dict[str, Any]]:
        """What fsspec knows of each file below ``folder``, by its name in the folder. Empty if there is none.

        Raises:
            InputError: the location cannot be read.
        """
        below = self.join(folder)
        with self.explained("read"):
            try:
                found = self.fs.find(below, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        start = len(self.fs._strip_protocol(below)) + 1
        return {str(path)[start:]: info for path, info in found.items()}

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in ``folder``, sorted. Empty if there is no such folder.

        Raises:
            InputError: the location cannot be read.
        """
        with self.explained("read"):
            try:
                found = self.fs.ls(self.join(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(str(one["name"]).rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory")

    def send(self, source: Path | bytes, name: str) -> None:
        """Write a file. Nobody sees a part of it.

        Raises:
            InputError: the location cannot be written.
        """
        target = self.join(name)
        # Objects in a bucket appear whole. A file in a folder gets its name when it is.
        written = f"{target}.part-{uuid.uuid4().hex[:8]}" if self.is_local else target
        with self.explained("written"):
            if isinstance(source, bytes):
                self.fs.makedirs(self.fs._parent(written), exist_ok=True)
                self.fs.pipe_file(written, source)
            else:
                self.fs.put_file(str(source), written)
            if self.is_local:
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(written, target)

    def send_all(
        self, files: Mapping[str, Path | bytes], what: str, advance: Callable[[int], None] = lambda files: None
    ) -> None:
        """Write several files: in one commit, to a location that ``commits``, and else some at a time.

        Args:
            files: the files, by name.
            what: what they are, for the message of the commit.
            advance: called with the number of files just written.

        Raises:
            InputError: the location cannot be written.
        """
        if not files:
            return
        if self.commits:
            self._commit(files, f"Add {what}")
            advance(len(files))
            return

        def send(name: str) -> None:
            self.send(files[name], name)
            advance(1)

        with ThreadPoolExecutor(AT_ONCE) as senders:
            list(senders.map(send, files))

    def _commit(self, files: Mapping[str, Path | bytes], message: str) -> None:
        from huggingface_hub import CommitOperationAdd

        with self.explained("written"):
            where = self.fs.resolve_path(self._path)
            operations = [
                CommitOperationAdd(
                    path_in_repo="/".join(part for part in (where.path_in_repo, name) if part),
                    path_or_fileobj=source if isinstance(source, bytes) else str(source),
                )
                for name, source in files.items()
            ]
            self.fs._api.create_commit(
                where.repo_id, operations, commit_message=message, repo_type=where.repo_type, revision=where.revision
            )
            self.fs.invalidate_cache()

    def fetch(self, name: str, file: Path) -> None:
        """Read a file of the location into ``file``.

        Raises:
            InputError: there is no such file, or the location cannot be read.
        """
        with self.explained("read"):
            self.fs.get_file(self.join(name), str(file))

    def fetch_if_there(self, name: str, file: Path) -> bool:
        """``fetch``, and whether there is such a file.

        Raises:
            InputError: the location cannot be read.
        """
        with self.explained("read"), suppress(FileNotFoundError):
            self.fs.get_file(self.join(name), str(file))
            return True
        return False

    def remove_all(self, folder: str) -> None:
        """Remove every file below ``folder``.

        Raises:
            InputError: the location cannot be written.
        """
        with self.explained("written"), suppress(FileNotFoundError):
            self.fs.rm(self.join(folder), recursive=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            InputError: the location cannot be written.
        """
        with self.explained("written"), suppress(FileNotFoundError):
            self.fs.rm_file(self.join(name))

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """Turn errors of the file system and its libraries into ``InputError``, without secrets.

        Raises:
            InputError: replaces such an error.
        """
        try:
            yield
        except FactsmithError:
            raise
        except Exception as error:
            names = {type(one).__module__.partition(".")[0] for one in causes(error)}
            # A full disk has a message of its own.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or not (isinstance(error, OSError) or names & _LIBRARIES):
                raise
            what = remedy(error, self.protocol)
            kind = UnreachableError if what == LATER else InputError
            raise kind(f"{self.url} cannot be {verb}.", got=plain(message(error)), remedy=what) from None

    def join(self, name: str) -> str:
        """The path of a file or folder in the file system."""
        return f"{self._path}/{name}" if name else self._path
