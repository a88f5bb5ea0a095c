"""Removing things from a shared store, safely against other machines.

Garbage is removed while others use the store: what nobody has written to for a day, by the server's clock, and
what no manifest names. Artifacts are removed only while nobody uses the store, and their manifests go first.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.remote.location import AT_ONCE
from factsmith.artifacts.remote.mirror import ARTIFACTS, FILES
from factsmith.artifacts.remote.shared.leases import LENGTH, Lease, holder, read_lease
from factsmith.artifacts.remote.shared.upstream import RemoteUpstream
from factsmith.artifacts.remote.shared.users import REMOVING, USERS, last_uses, live_users
from factsmith.artifacts.remote.versions import Entry, checksum, entries, look, remove_version, server_time
from factsmith.artifacts.removal import not_needed
from factsmith.artifacts.store import Store

__all__ = ["garbage", "removing", "remove_garbage", "unused_there", "upstream_of", "verify_there"]

_GRACE = 24 * 3600.0
"""Seconds after which a file that belongs to nothing counts as left behind. An upload takes less."""


def upstream_of(store: Store) -> RemoteUpstream:
    """What other machines see of a shared store."""
    if not isinstance(store.upstream, RemoteUpstream):
        raise TypeError(f"{store.where} is not shared")
    return store.upstream


@contextlib.contextmanager
def removing(upstream: RemoteUpstream, *, artifacts: bool) -> Iterator[None]:
    """Nobody else removes anything in this context. With ``artifacts``, nobody else uses the store either.

    Raises:
        InputError: somebody does, or the location cannot be written.
    """
    upstream.check()
    location = upstream.location
    lease = Lease(location, REMOVING, "the removal of artifacts")
    while not lease.take_at_once():
        other = read_lease(location, REMOVING)
        if not _remove_expired(upstream, REMOVING, other["seconds"]):
            raise InputError(
                f"Somebody else removes artifacts from {upstream.url}.",
                got=holder(other),
                remedy="wait until they have finished",
            )
    try:
        if artifacts and (users := live_users(location, without=upstream.presence.name)):
            raise InputError(
                f"The store {upstream.url} is in use.",
                got="; ".join(users[:4]) + ("; ..." if len(users) > 4 else ""),
                expected="no run that may be reading what would be removed",
                remedy=f"wait until they have ended. A process that was killed counts for {LENGTH:.0f} s more",
            )
        yield
    finally:
        lease.release()
        upstream.forget()


def _remove_expired(upstream: RemoteUpstream, name: str, seconds: float) -> bool:
    seen = look(upstream.location, name)
    return seen is None or (seen.age > seconds and remove_version(upstream.location, name, seen.tag))


def garbage(upstream: RemoteUpstream) -> dict[str, Entry]:
    """Each file that belongs to nothing: of killed uploads, dead leases, artifacts that were set aside.

    Raises:
        InputError: the location cannot be read.
    """
    location = upstream.location
    before = server_time(location) - _GRACE
    whole = upstream.listing()
    folders: dict[str, dict[str, dict[str, Entry]]] = {}
    for name, entry in entries(location, FILES).items():
        kind, series, digest, content, file = [*name.split("/", 4), "", "", "", ""][:5]
        folders.setdefault(f"{kind}/{series}/{digest}", {}).setdefault(content, {})[file] = entry
    found: dict[str, Entry] = {}
    for place, contents in folders.items():
        # An artifact with one folder has its own there. Which of several it is, its manifest says.
        named = _content(upstream, place) if place in whole and len(contents) > 1 else None
        for content, files in contents.items():
            left = place not in whole or (named is not None and content != named)
            if left and max(entry.modified for entry in files.values()) < before:
                found |= {f"{FILES}/{place}/{content}/{file}": entry for file, entry in files.items()}
    for name, entry in entries(location, ARTIFACTS).items():
        if "/".join(name.split("/")[:3]) not in whole and entry.modified < before:
            found[f"{ARTIFACTS}/{name}"] = entry
    for folder in ("leases", "damaged"):
        found |= {
            f"{folder}/{name}": entry
            for name, entry in entries(location, folder).items()
            if entry.modified < before and name != ".lock"
        }
    return found


def _content(upstream: RemoteUpstream, place: str) -> str | None:
    artifact = upstream.find(place)
    return artifact.manifest.content if artifact else None


def remove_garbage(upstream: RemoteUpstream, found: Mapping[str, Entry], advance: Callable[[int], None]) -> None:
    """Remove files that ``garbage`` has found, and join what many processes have noted of their use to one file.

    What somebody builds now is left alone.

    Raises:
        InputError: the location cannot be written.
    """
    by_place: dict[str, list[str]] = {}
    for name in found:
        folder, *parts = name.split("/")
        by_place.setdefault("/".join(parts[:3]) if folder in (ARTIFACTS, FILES) else "", []).append(name)
    for place, names in by_place.items():
        with contextlib.ExitStack() as stack:
            if all(_taken(upstream, digest, stack) for digest in place.split("/")[1:]):
                for name in names:
                    folder, _, file = name.rpartition("/")
                    if not place or entries(upstream.location, folder).get(file) == found[name]:
                        upstream.location.remove(name)
        advance(len(names))
    _join_uses(upstream)


def _taken(upstream: RemoteUpstream, digest: str, stack: contextlib.ExitStack) -> bool:
    """Whether nobody builds what is called ``digest``, and nobody will until the stack is closed."""
    lease = Lease(upstream.location, f"leases/{digest}.json", f"the removal of {digest}")
    if taken := lease.take_at_once():
        stack.callback(lease.release)
    return taken


def _join_uses(upstream: RemoteUpstream) -> None:
    location = upstream.location
    before = server_time(location) - _GRACE
    uses, files = last_uses(location)
    old = [name for name, entry in files.items() if entry.modified < before]
    if len(old) > 1:
        data = json.dumps({"ended": True, "seconds": 0, "series": uses}).encode()
        location.send(data, f"{USERS}/{uuid.uuid4().hex}.json")
        for name in old:
            location.remove(f"{USERS}/{name}")


def unused_there(upstream: RemoteUpstream, days: float) -> tuple[list[str], dict[str, Manifest | None]]:
    """Places of artifacts that no run has used for ``days``, and that none still in use was made from.

    Of an artifact that was published at most ``days`` ago, and of a series of which any artifact was used, nothing is
    unused. Also returns all manifests.

    Raises:
        InputError: the location cannot be read.
    """
    before = server_time(upstream.location) - 86_400 * days
    uses, _ = last_uses(upstream.location)
    listed = upstream.listing()
    manifests = upstream.manifests()
    old = {
        place
        for place, files in listed.items()
        if max(files[MANIFEST_NAME].modified, uses.get(place.rpartition("/")[0], 0.0)) < before
    }
    return not_needed(old & manifests.keys(), manifests), manifests


def verify_there(upstream: RemoteUpstream, place: str) -> list[str]:
    """Read every byte of the artifact at ``place``. Returns what is wrong, one line for each file.

    Raises:
        InputError: the location cannot be read.
    """
    artifact = upstream.find(place)
    if artifact is None:
        return [f"{upstream.url}/{ARTIFACTS}/{place}/{MANIFEST_NAME} cannot be used"]
    folder = upstream.folder(place, artifact.manifest)

    def problem(name: str) -> str | None:
        found, url = checksum(upstream.location, f"{folder}/{name}"), f"{upstream.url}/{folder}/{name}"
        if found is None:
            return f"{url} is missing"
        return None if found == artifact.manifest.files[name].sha256 else f"{url} has other bytes than were written"

    with ThreadPoolExecutor(AT_ONCE) as readers:
        return [one for one in readers.map(problem, artifact.manifest.files) if one]
