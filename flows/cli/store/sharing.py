"""Removal from a shared store, for ``factsmith store gc`` and ``rm``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import typer

from factsmith.artifacts.remote.shared.removal import (
    garbage,
    remove_garbage,
    removing,
    unused_there,
    upstream_of,
)
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.progress import progress

__all__ = ["collect", "remove_places"]


def collect(store: Store, unused_days: float | None, *, dry_run: bool) -> None:
    """Remove what nobody needs from where all machines see it, and print what it was.

    Raises:
        InputError: artifacts are to be removed while somebody uses the store, or it cannot be written.
    """
    upstream = upstream_of(store)
    with removing(upstream, artifacts=unused_days is not None):
        found = garbage(upstream)
        if not dry_run:
            with progress("remove", len(found)) as advance:
                remove_garbage(upstream, found, advance)
        number, freed = Counter(name.partition("/")[0] for name in found), Counter[str]()
        for name, entry in found.items():
            freed[name.partition("/")[0]] += entry.size
        for folder, count in number.items():
            typer.echo(f"{count} left in {upstream.url}/{folder}, {freed[folder]:,} bytes")
        if unused_days is not None:
            places, manifests = unused_there(upstream, unused_days)
            _remove(store, places, {place: one.size if one else 0 for place, one in manifests.items()}, dry_run=dry_run)


def remove_places(store: Store, places: Sequence[str], *, dry_run: bool) -> None:
    """Remove artifacts from where all machines see them, and print what they were.

    Raises:
        InputError: somebody uses the store, or it cannot be written.
    """
    upstream = upstream_of(store)
    with removing(upstream, artifacts=True):
        there = set(upstream.places())
        sizes = {place: one.size if one else 0 for place, one in upstream.manifests().items()}
        _remove(store, [place for place in places if place in there], sizes, dry_run=dry_run)


def _remove(store: Store, places: Sequence[str], sizes: dict[str, int], *, dry_run: bool) -> None:
    upstream = upstream_of(store)
    if not dry_run:
        with progress("remove", len(places)) as advance:
            for place in places:
                upstream.remove(place)
                advance(1)
    for kind, count in Counter(place.partition("/")[0] for place in places).items():
        size = sum(sizes[place] for place in places if place.startswith(f"{kind}/"))
        typer.echo(f"{count} {kind} artifacts in {upstream.url}, {size:,} bytes")
