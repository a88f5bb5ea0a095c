"""Who uses a shared store: each process that reads or writes it has a lease, which names the series that it has used.

The lease of a process that has ended stays: it says when these series were last used. Whoever removes artifacts holds
the lease ``removing``, and then looks for users; a user makes its own lease, and then looks for ``removing``. One of
them sees the other, whichever was first.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from threading import Lock
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.remote.location import Location, UnreachableError
from factsmith.artifacts.remote.shared.leases import Lease, has_ended, holder, is_live, read_lease
from factsmith.artifacts.remote.shared.patience import patiently
from factsmith.artifacts.remote.versions import Entry, entries, server_time

__all__ = ["REMOVING", "USERS", "Presence", "last_uses", "live_users"]

logger = logging.getLogger(__name__)

USERS = "users"
REMOVING = "leases/removing.json"


class Presence:
    """The use of a shared store by this process.

    Args:
        location: where the store is.
    """

    def __init__(self, location: Location) -> None:
        self.name = f"{uuid.uuid4().hex}.json"
        self._location = location
        self._lock = Lock()
        self._inside = 0
        self._lease: Lease | None = None
        self._series: set[str] = set()
        self._ended = False

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """From the first ``begin`` in this context to its end, others see that this process uses the store."""
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._end()

    def begin(self) -> None:
        """Show that this process uses the store, if it is in ``shown``. Waits while somebody removes artifacts.

        Credentials that may only read leave no trace.

        Raises:
            InputError: the location cannot be reached.
        """
        if self._lease is not None or not self._inside:
            return
        with self._lock:
            if self._lease is not None or not self._inside:
                return
            self._ended = False
            self.name = f"{uuid.uuid4().hex}.json"
            lease = Lease(self._location, f"{USERS}/{self.name}", "the store", self._content)
            try:
                patiently(lease.take_at_once)
            except UnreachableError:
                raise
            except InputError as error:
                logger.debug("this process does not show that it uses the store: %s", error)
            self._lease = lease
            said = False
            while (other := patiently(lambda: is_live(self._location, REMOVING))) is not None:
                if not said:
                    logger.info(
                        "waiting for a process that removes artifacts at %s (%s)", self._location.url, holder(other)
                    )
                    said = True
                time.sleep(1)

    def uses(self, series: str) -> None:
        """Note that the series with this address is used now."""
        self._series.add(series)

    def _end(self) -> None:
        lease, self._lease = self._lease, None
        if lease is None or not lease.is_held:
            return
        self._ended = True
        lease.stop()
        try:
            if self._series:
                lease.renew()
            else:
                lease.release()
        except InputError as error:
            logger.debug("the use of the store was not noted: %s", error)

    def _content(self) -> dict[str, Any]:
        return {"ended": self._ended, "series": sorted(self._series.copy())}


def live_users(location: Location, *, without: str = "") -> list[str]:
    """Who uses the store now, for messages.

    Args:
        location: where the store is.
        without: the file of the caller's own presence.

    Raises:
        InputError: the location cannot be read.
    """
    now = server_time(location)
    found = []
    for name, entry in entries(location, USERS).items():
        if name != without and name.endswith(".json") and not name.startswith("."):
            content = read_lease(location, f"{USERS}/{name}")
            if not has_ended(content) and now - entry.modified <= content["seconds"]:
                found.append(holder(content))
    return found


def last_uses(location: Location) -> tuple[dict[str, float], dict[str, Entry]]:
    """When each series was last used, by the server's clock, by its address; and the files that say so.

    Raises:
        InputError: the location cannot be read.
    """
    found: dict[str, float] = {}
    files = {
        name: entry for name, entry in entries(location, USERS).items() if name.endswith(".json") and name[0] != "."
    }
    for name, entry in files.items():
        series = read_lease(location, f"{USERS}/{name}").get("series")
        times = series if isinstance(series, dict) else dict.fromkeys(series or [], entry.modified)
        for address, when in times.items():
            found[address] = max(found.get(address, 0.0), float(when))
    return found, files
