"""Leases: locks at a location, which end by themselves if their holder dies.

A lease is a file. Who holds it writes it anew at a third of its length. Who waits for it looks at its age, by the
server's clock, and takes it over if it is older than its length. No machine's own clock counts. The lease of a
process that has ended on the same machine is taken over at once. A holder who was suspended for longer than the length
learns at the next renewal that the lease is lost. Leases only save work: what two holders build and publish is right
all the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.processes.machine import machine
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.versions import create, look, remove_version, replace

__all__ = ["LENGTH", "Lease", "has_ended", "holder", "is_live", "read_lease"]

logger = logging.getLogger(__name__)

LENGTH = 120.0
"""Seconds after which a lease that nobody renews may be taken over."""

_LONGEST_PAUSE = 5.0
"""Most seconds between two looks at a lease that somebody else holds."""


class Lease:
    """A lease that this process may hold.

    Args:
        location: where it is.
        name: its file.
        what: what it is for, in messages: the text after "waiting for".
        content: further content of the file, whenever it is written.

    Attributes:
        lost: whether somebody else has taken the lease over while this process held it.
    """

    def __init__(
        self, location: Location, name: str, what: str, content: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self.lost = False
        self._location = location
        self._name = name
        self._what = what
        self._content = content
        self._owner = uuid.uuid4().hex
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._tag = ""
        self._released = Event()
        self._renewing: Thread | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process has taken the lease. It may have been lost since."""
        return self._renewing is not None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease. Waits while somebody else holds it.

        Raises:
            InputError: the location cannot be read or written.
        """
        self.take()
        try:
            yield
        finally:
            self.release()

    def take(self) -> None:
        """Take the lease, and renew it from now on. Waits while somebody else holds it.

        Raises:
            InputError: as in ``held``.
        """
        pause, tag, said = 0.1, "", False
        while not self.take_at_once():
            seen = look(self._location, self._name)
            if seen is None:
                continue  # It has just been released.
            if seen.tag != tag:
                tag, other = seen.tag, read_lease(self._location, self._name)
                if other.get("owner") == self._owner:  # The answer to writing it did not arrive.
                    self._begin(tag)
                    return
                if not said:
                    logger.info("waiting for %s at %s (%s)", self._what, self._location.url, holder(other))
                    said = True
            if (ended := has_ended(other)) or seen.age > other["seconds"]:
                if self._take_over(seen.tag):
                    logger.warning(
                        "took over the lease of %s: %s %s",
                        self._what, holder(other), "has ended" if ended else f"has not renewed it for {seen.age:.0f} s",
                    )  # fmt: skip
                    return
                continue
            time.sleep(min(pause, max(0.1, other["seconds"] - seen.age)))
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def take_at_once(self) -> bool:
        """Take the lease if nobody has it, and renew it from now on. Returns whether it was taken.

        Raises:
            InputError: as in ``held``.
        """
        tag = create(self._location, self._name, self._data())
        if tag is not None:
            self._begin(tag)
        return tag is not None

    def release(self) -> None:
        """Stop renewing the lease, and remove it if it is still this process's."""
        self.stop()
        if not self.lost:
            try:
                self.lost = not remove_version(self._location, self._name, self._tag)
            except InputError as error:
                logger.warning("%s\n  The lease of %s ends by itself in %.0f s", error, self._what, LENGTH)
                return
            if self.lost:
                self._say_lost()

    def stop(self) -> None:
        """Stop renewing the lease. Its file stays."""
        self._released.set()
        if self._renewing is not None:
            self._renewing.join()

    def renew(self) -> None:
        """Renew the lease now.

        Raises:
            InputError: the location cannot be written.
        """
        tag = replace(self._location, self._name, self._data(), self._tag)
        if tag is None:
            seen = look(self._location, self._name)
            if seen is None or read_lease(self._location, self._name).get("owner") != self._owner:
                self.lost = True
                return
            tag = seen.tag  # The answer to an earlier renewal did not arrive.
        self._tag = tag

    def _take_over(self, tag: str) -> bool:
        new = replace(self._location, self._name, self._data(), tag)
        if new is not None:
            self._begin(new)
        return new is not None

    def _begin(self, tag: str) -> None:
        self._tag = tag
        self._renewing = Thread(target=self._keep, name=f"lease of {self._what}", daemon=True)
        self._renewing.start()

    def _keep(self) -> None:
        failed = False
        while not self._released.wait(LENGTH / 3):
            try:
                self.renew()
                failed = False
            except InputError as error:
                if not failed:
                    logger.warning("The lease of %s could not be renewed; trying again.\n%s", self._what, error)
                failed = True
            if self.lost:
                self._say_lost()
                return

    def _say_lost(self) -> None:
        logger.warning(
            "Somebody else has taken over the lease of %s, because it was not renewed for %.0f s. Both may build the "
            "same artifacts; the first that is published counts.",
            self._what, LENGTH,
        )  # fmt: skip

    def _data(self) -> bytes:
        content = {
            "owner": self._owner,
            "machine": socket.gethostname(),
            "boot": machine(),
            "process": os.getpid(),
            "since": self._since,
            "seconds": LENGTH,
            "version": uuid.uuid4().hex,  # Every version differs, so its tag does.
            **self._content(),
        }
        return json.dumps(content).encode()


def read_lease(location: Location, name: str) -> dict[str, Any]:
    """The content of a lease. One that cannot be read has the usual length and no holder.

    Raises:
        InputError: the location cannot be read.
    """
    found: dict[str, Any] = {"seconds": LENGTH}
    with contextlib.suppress(ValueError, TypeError):
        content = json.loads(location.read(name) or b"")
        if isinstance(content, dict):
            found |= content
            found["seconds"] = float(content.get("seconds", LENGTH))
    return found


def holder(content: Mapping[str, Any]) -> str:
    """Who holds a lease, for messages."""
    return (
        ", ".join(f"{name} {content[name]}" for name in ("machine", "process", "since") if name in content) or "unknown"
    )


def is_live(location: Location, name: str) -> dict[str, Any] | None:
    """The content of a lease that somebody holds and renews; ``None`` if nobody does.

    Raises:
        InputError: the location cannot be read.
    """
    seen = look(location, name)
    if seen is None:
        return None
    content = read_lease(location, name)
    return None if has_ended(content) or seen.age > content["seconds"] else content


def has_ended(content: Mapping[str, Any]) -> bool:
    """Whether the holder says that it has ended, or was a process of this machine that no longer runs."""
    if content.get("ended"):
        return True
    process = content.get("process")
    if content.get("boot") != machine() or not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False
