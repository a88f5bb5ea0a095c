"""SHA-256 of files, remembered while a file's size, times and inode stay the same.

Checking a store of tens of gigabytes on every run would cost more than the run. A file is read again as soon as
any of these changes. ``Checksums.read`` always reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["Checksums"]

_TABLE = (
    "CREATE TABLE IF NOT EXISTS files "
    "(path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER, sha256 TEXT)"
)
_RECALL = "SELECT sha256 FROM files WHERE path = ? AND size = ? AND mtime = ? AND ctime = ? AND inode = ?"
_REMEMBER = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)"

_READERS = 8
"""Most files that are read at once."""


class Checksums:
    """Checksums of files, remembered in a SQLite file.

    Args:
        database: the SQLite file. If its folder does not exist, nothing is remembered.
    """

    def __init__(self, database: Path) -> None:
        self.database = database

    @staticmethod
    def read(path: Path) -> str:
        """SHA-256 of the file's bytes as they are now."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @classmethod
    def read_all(cls, paths: Iterable[Path]) -> dict[Path, str]:
        """SHA-256 of the bytes of each file as they are now. Files are read side by side."""
        wanted = list(paths)
        if len(wanted) < 2:
            return {path: cls.read(path) for path in wanted}
        with ThreadPoolExecutor(_READERS) as readers:  # Hashing does not hold Python's lock.
            return dict(zip(wanted, readers.map(cls.read, wanted), strict=True))

    def sha256(self, path: Path) -> str:
        """SHA-256 of the file. It is only read if it has changed since it was last read."""
        return self.sha256_all([path])[path]

    def sha256_all(self, paths: Iterable[Path]) -> dict[Path, str]:
        """SHA-256 of each file. Only those are read that have changed since they were last read, side by side."""
        found = {path: self.known(path) for path in paths}
        before = {path: _identity(path) for path, known in found.items() if known is None}
        read = self.read_all(before)
        self.remember({path: checksum for path, checksum in read.items() if _identity(path) == before[path]})
        return {path: read[path] if known is None else known for path, known in found.items()}

    def known(self, path: Path) -> str | None:
        """SHA-256 of the file if it has not changed since it was last read, otherwise ``None``."""
        found = self._run(_RECALL, [_identity(path)])
        return str(found[0][0]) if found else None

    def remember(self, checksums: Mapping[Path, str]) -> None:
        """Remember checksums that the caller has just computed from the files' bytes."""
        if checksums:
            self._run(_REMEMBER, [(*_identity(path), checksum) for path, checksum in checksums.items()])

    def forget_missing(self) -> None:
        """Forget the checksums of files that no longer exist."""
        gone = [(path,) for (path,) in self._run("SELECT path FROM files", [()]) if not Path(path).exists()]
        self._run("DELETE FROM files WHERE path = ?", gone)

    def _run(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Run ``statement`` once for each row. Finds nothing if the database cannot be used, which only costs time."""
        if not self.database.parent.is_dir():
            return []
        found: list[tuple[Any, ...]] = []
        try:
            with contextlib.closing(sqlite3.connect(self.database, timeout=10)) as connection, connection:
                connection.execute("PRAGMA synchronous = OFF")  # After a power cut, files are read again.
                connection.execute(_TABLE)
                for row in rows:
                    found += connection.execute(statement, row).fetchall()
        except sqlite3.Error:
            return []
        return found


def _identity(path: Path) -> tuple[str, int, int, int, int]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
