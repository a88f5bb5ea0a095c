"""Removing things from a store: leftovers, artifacts that nobody has used for long, and artifacts by name.

The store is held exclusively, so no run reads it meanwhile. An artifact disappears by one rename and is deleted
afterwards.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.manifest import Manifest
from factsmith.artifacts.processes.locks import IN_USE, held_at_once
from factsmith.artifacts.store import Store, unwritable

__all__ = ["alone", "dependants", "discard", "leftovers", "not_needed", "remove", "size", "unused"]

_TRASH = "trash"


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Nobody else uses the store in this context.

    Raises:
        InputError: somebody uses it, or it cannot be written.
    """
    store.staging()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held_at_once(store.lock_path(IN_USE)))
        except BlockingIOError:
            raise InputError(
                f"The store {store.root} is in use.",
                got="a run is in progress and may be reading what would be removed",
                remedy="wait until it has ended",
            ) from None
        yield


def leftovers(store: Store) -> list[Path]:
    """Files and folders that are not needed while nobody uses the store.

    These are drafts of processes that were killed, damaged artifacts that were moved aside, removed artifacts whose
    deletion was interrupted, and locks that nobody holds.
    """
    folders = [store.root / name for name in ("staging", "damaged", _TRASH, "locks")]
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path != store.lock_path(IN_USE)
    ]


def unused(store: Store, days: float) -> list[str]:
    """Places of the artifacts here that no run has used for ``days``, and that none still in use was made from.

    Times of use are known to the hour. Copies of a shared store are not needed for others: they can be fetched again.
    """
    before = time.time() - 86_400 * days
    old = {"/".join(path.parts[-3:]) for path in store.all_paths() if path.stat().st_mtime < before}
    return sorted(old) if store.upstream is not None else not_needed(old, store.manifests())


def not_needed(places: set[str], manifests: Mapping[str, Manifest | None]) -> list[str]:
    """Those of ``places`` that no artifact at another place was made from, directly or indirectly."""
    places, users = set(places), _users(manifests)
    while needed := {place for place in places if any(user not in places for user in users[place])}:
        places -= needed
    return sorted(places)


def dependants(places: Iterable[str], manifests: Mapping[str, Manifest | None]) -> list[str]:
    """Places of the artifacts that were made from those at ``places``, directly or indirectly, without ``places``."""
    users = _users(manifests)
    given = set(places)
    found: set[str] = set()
    waiting = list(given)
    while waiting:
        new = users.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return sorted(found - given)


def _users(manifests: Mapping[str, Manifest | None]) -> dict[str, set[str]]:
    """For each artifact, those that were made from it: it is in their lineage or in their recipe.

    A damaged artifact has no manifest. It is not used, and its sources are not known.
    """
    by_digest = {place.rpartition("/")[2]: place for place in manifests}
    users: dict[str, set[str]] = {place: set() for place in manifests}
    for place, manifest in manifests.items():
        if manifest is not None:
            sources = {address.rpartition("/")[2] for address in manifest.lineage}
            sources |= set(manifest.recipe["series"]["inputs"].values())
            for digest in sources & set(by_digest):
                users[by_digest[digest]].add(place)
    return users


def remove(store: Store, paths: Iterable[Path], *, advance: Callable[[int], None] = lambda paths: None) -> None:
    """Remove files and folders below the store's root. The caller holds the store ``alone``.

    Raises:
        InputError: a file or folder cannot be removed.
    """
    trash = store.root / _TRASH
    try:
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path if path.parent == trash else _out_of_sight(store, path))
                with contextlib.suppress(OSError):  # The folder may hold others of its series.
                    if path.parent.parent.parent == store.root / "artifacts":
                        path.parent.rmdir()
            else:
                path.unlink()
            advance(1)
    except OSError as error:
        raise unwritable(store.root, error) from None
    store.checksums.forget_missing()


def discard(store: Store, artifact: Artifact) -> None:
    """Remove an artifact that only its maker ever reads, while the store is in use."""
    if store.upstream is not None:
        store.upstream.remove(artifact.place)
    if (path := store.path(artifact.place)).is_dir():
        shutil.rmtree(_out_of_sight(store, path))


def _out_of_sight(store: Store, path: Path) -> Path:
    trash = store.root / _TRASH
    trash.mkdir(exist_ok=True)
    return path.rename(trash / f"{path.name}-{uuid.uuid4().hex[:8]}")


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_file())
