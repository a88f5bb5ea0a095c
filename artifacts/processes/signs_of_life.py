"""Files that tell whether a process still lives: a lock is held on each for as long as its process runs.

The kernel unlocks a file when its process ends, however it ends. A process id alone would not do: it may be given to
another process.

Machines may share the folder. Where locks do not reach from one machine to another, or a server has lost them, a file
of another machine looks unlocked while its process lives. Processes therefore renew their files, and one of another
machine is dead only if it is not locked and was not renewed for long, by the clock of the server that dates the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any

from factsmith.artifacts.processes.machine import machine

__all__ = ["SignOfLife", "dead", "living", "sign_of_life"]


_RENEWED = 60.0
"""Seconds between two renewals of a file."""

_SILENT = 900.0
"""Seconds without renewal after which a process of another machine counts as dead."""


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

    It appears by a rename, so nobody sees it before it is locked. Its content names the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with hidden.open("w+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said = {"machine": machine(), **content}
            json.dump(said, file)
            file.flush()
            hidden.rename(path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        sign, ended = SignOfLife(path, file, said), Event()
        renewing = Thread(target=_renew, args=(sign, ended), name=f"sign of life {path.name}", daemon=True)
        renewing.start()
        try:
            yield sign
        finally:
            ended.set()
            renewing.join()


def _renew(sign: SignOfLife, ended: Event) -> None:
    while not ended.wait(_RENEWED):
        with contextlib.suppress(OSError):  # The server of the folder may be away for a while.
            sign.renew()


def living(path: Path) -> dict[str, Any] | None:
    """The content of ``path``, if its process lives, on this machine."""
    with contextlib.suppress(FileNotFoundError), path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            content: dict[str, Any] = json.load(file)
            return content if content.get("machine", machine()) == machine() else None
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
            if not isinstance(content := json.load(file), dict):
                continue
            sign = SignOfLife(path, file, content)
            if content.get("machine", machine()) == machine() or _now(folder) - sign.seen > _SILENT:
                yield sign


def _now(folder: Path) -> float:
    """The time by the clock that dates the files of ``folder``."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"now")
        file.flush()
        return os.fstat(file.fileno()).st_mtime
