"""Locks between processes. They are files, which the kernel unlocks when the holder ends, even if it is killed.

On NFS, Linux makes ``flock`` a lock of the server, so machines that share a folder exclude each other. A shared lock
then needs a file that is open for reading, and an exclusive one a file that is open for writing: lock files are open
for both. A machine that crashes holds its locks until the server notices, after the lease time of NFSv4.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

__all__ = ["IN_USE", "held", "held_at_once", "shared"]

logger = logging.getLogger(__name__)

IN_USE = "in-use"
"""Name of the lock that all users of a store share."""


@contextlib.contextmanager
def held(path: Path, whom: str) -> Iterator[None]:
    """Hold the lock ``path`` exclusively. Waits for ``whom`` if necessary."""
    with _locked(path, fcntl.LOCK_EX, whom):
        yield


@contextlib.contextmanager
def shared(path: Path, whom: str) -> Iterator[None]:
    """Share the lock ``path`` with others. Waits for ``whom`` if necessary."""
    with _locked(path, fcntl.LOCK_SH, whom):
        yield


@contextlib.contextmanager
def held_at_once(path: Path) -> Iterator[None]:
    """Hold the lock ``path`` exclusively, without waiting.

    Raises:
        BlockingIOError: another process holds it.
    """
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def _locked(path: Path, kind: int, whom: str) -> Iterator[None]:
    with path.open("a+") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for %s", whom)
            fcntl.flock(file, kind)
        yield
