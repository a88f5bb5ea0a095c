"""Files that tell whether a process still lives: a lock is held on each for as long as its process runs.

The kernel unlocks a file when its process ends, however it ends. A process id alone would not do: it may be given to
another process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

__all__ = ["SignOfLife", "dead", "living", "sign_of_life"]


class SignOfLife:
    """A file that this process has locked.

    Attributes:
        path: the file.
        content: what it says.
        seen: when its process was last known to live, in seconds since the epoch.
    """

    def __init__(self, path: Path, file: IO[str], content: dict[str, Any]) -> None:
        self.path = path
        self.content = content
        self.seen = os.fstat(file.fileno()).st_mtime
        self._file = file

    def renew(self) -> None:
        """Say that the process lives now."""
        os.utime(self._file.fileno())

    def write(self, **more: Any) -> None:
        """Add to the content. A dead process is still last seen when it was."""
        self.content |= more
        self._file.seek(0)
        self._file.truncate()
        json.dump(self.content, self._file)
        self._file.flush()
        os.utime(self._file.fileno(), (self.seen, self.seen))

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def sign_of_life(path: Path, content: Mapping[str, Any]) -> Iterator[SignOfLife]:
    """Make the file ``path``, locked while the context is open. Whoever makes it removes it.

    It appears by a rename, so nobody sees it before it is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with hidden.open("w+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            json.dump(dict(content), file)
            file.flush()
            hidden.rename(path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        yield SignOfLife(path, file, dict(content))


def living(path: Path) -> dict[str, Any] | None:
    """The content of ``path``, if its process lives."""
    with contextlib.suppress(FileNotFoundError), path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            content: dict[str, Any] = json.load(file)
            return content
    return None


def dead(folder: Path) -> Iterator[SignOfLife]:
    """The files in ``folder`` whose processes have ended, each locked while it is looked at."""
    for path in sorted(folder.glob("*.json")):
        # A file that is gone, that cannot be written, or that says something else is nobody's.
        with contextlib.suppress(OSError, json.JSONDecodeError), path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # It lives, or another process is looking at it.
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # It has just been removed.
            if isinstance(content := json.load(file), dict):
                yield SignOfLife(path, file, content)
