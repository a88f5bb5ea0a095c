"""Where a run looks for statistics before it computes them: ``runtime.mirror``."""

from __future__ import annotations

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.mirror import Mirror
from factsmith.artifacts.remote.transfer import Lookup
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.progress import progress

__all__ = ["check_mirror", "look_in"]

_KINDS = frozenset({"model", "tokens", "keys", "covariance", "leverage", "spectrum", "factor", "directions"})
"""Kinds of artifacts that do not depend on the facts."""


def check_mirror(url: str | None) -> None:
    """Check that there are artifacts at ``url``, if one is given, before a run computes what it was to bring.

    Raises:
        InputError: there are none, or it cannot be read.
    """
    if url is None:
        return
    location = Location.open(url)
    location.check()
    if not Mirror(location).kinds:
        raise InputError(
            f"There are no artifacts at {location.url}.",
            expected="a place that `factsmith store push` has written to, or a copy of a store",
            remedy="check the name, or leave out --from and runtime.mirror to compute everything here",
        )


def look_in(store: Store, url: str | None) -> None:
    """Bring statistics that ``store`` lacks from ``url`` from now on; from nowhere if it is ``None``."""
    known = store.source
    if url is None:
        store.source = None
    elif not isinstance(known, Lookup) or known.url != url.rstrip("/"):
        store.source = Lookup(store, Mirror(Location.open(url)), _KINDS, progress)
