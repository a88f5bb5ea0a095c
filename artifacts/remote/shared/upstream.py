"""The part of a shared store that all machines see. ``Store`` asks it for what it lacks, and publishes there first.

A manifest is written last, and only if there is none: the first publication of an artifact counts. The files beside it
are in a folder that is named by their checksum, so files of two publications never mix. Files are fetched when
they are first read, and checked against the manifest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock

from factsmith.artifacts.artifact import Artifact, place_of
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.processes.locks import held, held_at_once
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.remote.location import AT_ONCE, Location
from factsmith.artifacts.remote.mirror import ARTIFACTS, FILES, checked_manifest
from factsmith.artifacts.remote.shared.copies import Elsewhere, fetch
from factsmith.artifacts.remote.shared.leases import Lease
from factsmith.artifacts.remote.shared.patience import patiently
from factsmith.artifacts.remote.shared.users import Presence
from factsmith.artifacts.remote.transfer import ProgressBar
from factsmith.artifacts.remote.versions import Entry, create, entries, look, replace
from factsmith.artifacts.store import Store

__all__ = ["RemoteUpstream"]

logger = logging.getLogger(__name__)

_FRESH = 30.0
"""Seconds for which a listing is believed. Whoever is about to build takes a lease first, and then lists anew."""

_PLACE = re.compile(r"([a-z][a-z0-9_-]*/[0-9a-f]{32}/[0-9a-f]{32})/(.+)")


class RemoteUpstream:
    """The artifacts at a location that several machines share.

    Args:
        store: the folder with this machine's copies.
        location: where the artifacts are.
        progress: shows the progress of what takes long.

    Attributes:
        url: where the artifacts are.
        presence: shows others that this process uses the store.
    """

    def __init__(self, store: Store, location: Location, progress: ProgressBar) -> None:
        self.url = location.url
        self.location = location
        self.presence = Presence(location)
        self._store = store
        self._progress = progress
        self._lock = Lock()
        self._listed: dict[str, tuple[float, dict[str, dict[str, Entry]]]] = {}
        self._checked = False

    # ------------------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        """Check that the location can be written, and send what an earlier run could not send.

        Raises:
            InputError: it cannot. Nothing is left there.
        """
        if not self._checked:
            patiently(self.location.check)
            probe = f"leases/probe-{self.presence.name}"
            try:
                patiently(lambda: self.location.remove(probe))  # Who may not remove must not write either.
                patiently(lambda: create(self.location, probe, b"{}"))
                patiently(lambda: self.location.remove(probe))
            except InputError as error:
                raise InputError(
                    f"The store {self.url} cannot be written.",
                    got=error.details.get("got", error.what),
                    expected="credentials that may read, write, list and remove objects there",
                    remedy=f"{error.details.get('remedy')}; or only read from it: set FACTSMITH_HOME to a folder, and "
                    f"runtime.mirror={self.url}",
                ) from None
            self._checked = True
        for path in sorted(self._store.root.glob("unsent/*/*/*")):
            with contextlib.suppress(BlockingIOError), held_at_once(self._lock_path(path.name)):
                self._send_again(path)

    # -------------------------------------------------------------------------------------------------------- finding

    def find(self, place: str) -> Artifact | None:
        """The artifact at ``place``, whose files are fetched when they are read."""
        series, _, digest = place.rpartition("/")
        files = self._listing(series).get(digest)
        return None if files is None else self._artifact(place, files)

    def members(self, series: Series, without: Collection[str]) -> list[Artifact]:
        """The artifacts of ``series``, but those with the digests ``without``."""
        listed = {digest: files for digest, files in self._listing(series.address).items() if digest not in without}
        with ThreadPoolExecutor(AT_ONCE) as readers:
            found = readers.map(lambda one: self._artifact(f"{series.address}/{one[0]}", one[1]), listed.items())
            return [artifact for artifact in found if artifact is not None]

    def listing(self, kind: str | None = None) -> dict[str, dict[str, Entry]]:
        """The files beside each manifest, by place and name, with the manifest.

        Raises:
            InputError: the location cannot be read.
        """
        found: dict[str, dict[str, Entry]] = {}
        start = "" if kind is None else f"{kind}/"
        self.presence.begin()
        for name, entry in patiently(lambda: entries(self.location, f"{ARTIFACTS}/{start}".rstrip("/"))).items():
            if match := _PLACE.fullmatch(start + name):
                found.setdefault(match[1], {})[match[2]] = entry
        return {place: files for place, files in sorted(found.items()) if MANIFEST_NAME in files}

    def manifests(self, kind: str | None = None) -> dict[str, Manifest | None]:
        """The manifest of every artifact by place; ``None`` if it cannot be read."""
        listed = self.listing(kind)
        with self._progress("manifests", len(listed)) as advance, ThreadPoolExecutor(AT_ONCE) as readers:

            def read(place: str) -> Manifest | None:
                manifest = self._manifest(place, listed[place][MANIFEST_NAME])
                advance(1)
                return manifest

            return dict(zip(listed, readers.map(read, listed), strict=True))

    def places(self, kind: str | None = None) -> list[str]:
        """The places of all artifacts, or of those of a kind, sorted."""
        return list(self.listing(kind))

    def uses(self, series: str) -> None:
        """Note that the series with this address is used."""
        self.presence.uses(series)

    def in_use(self) -> AbstractContextManager[None]:
        """Others see in this context that this process uses the store, once it has looked at it."""
        return self.presence.shown()

    def forget(self) -> None:
        """Believe no listing from before."""
        with self._lock:
            self._listed.clear()

    def _listing(self, series: str) -> dict[str, dict[str, Entry]]:
        """As ``listing``, of one series, by digest. It is at most ``_FRESH`` seconds old."""
        with self._lock:
            when, found = self._listed.get(series, (0.0, {}))
        if when and time.monotonic() - when < _FRESH:
            return found
        self.presence.begin()
        self.presence.uses(series)
        when, new = time.monotonic(), dict[str, dict[str, Entry]]()
        for name, entry in patiently(lambda: entries(self.location, f"{ARTIFACTS}/{series}")).items():
            if match := _PLACE.fullmatch(f"{series}/{name}"):
                new.setdefault(match[1].rpartition("/")[2], {})[match[2]] = entry
        found = {digest: files for digest, files in sorted(new.items()) if MANIFEST_NAME in files}
        with self._lock:
            self._listed[series] = when, found
        return found

    def _artifact(self, place: str, files: dict[str, Entry]) -> Artifact | None:
        manifest = self._manifest(place, files[MANIFEST_NAME])
        if manifest is None:
            return None
        folder, tag = self.folder(place, manifest), files[MANIFEST_NAME].tag
        return Elsewhere(manifest, lambda: fetch(self._store, self.location, manifest, folder, tag, self._progress))

    def folder(self, place: str, manifest: Manifest) -> str:
        """Where the files of an artifact are: beside its manifest if ``store push`` has written it."""
        series, _, digest = place.rpartition("/")
        files = self._listing(series).get(digest, {})
        pushed = manifest.files and all(
            name in files and files[name].size == one.bytes for name, one in manifest.files.items()
        )
        return f"{ARTIFACTS}/{place}" if pushed else f"{FILES}/{place}/{manifest.content}"

    def _manifest(self, place: str, entry: Entry) -> Manifest | None:
        """The manifest at a place, which is read once by each machine; ``None`` if it is gone or damaged."""
        known = self._store.root / "known" / place / f"{digest_of(entry.tag)[:16]}.json"
        where = f"{self.url}/{ARTIFACTS}/{place}/{MANIFEST_NAME}"
        for is_known in (True, False):
            try:
                data = known.read_bytes() if is_known else None
            except OSError:
                continue
            data = data or patiently(lambda: self.location.read(f"{ARTIFACTS}/{place}/{MANIFEST_NAME}"))
            if data is None:
                return None  # It has been removed since the listing.
            try:
                manifest = checked_manifest(data, where)
                if place_of(manifest) != place:
                    raise DamagedArtifactError(f"{where} is that of another artifact.", got=manifest.address)
            except DamagedArtifactError as error:
                if not is_known:
                    logger.warning("%s\n  remedy: building it again", error)
                continue
            if not is_known:
                known.parent.mkdir(parents=True, exist_ok=True)
                written = known.with_name(f".{known.name}-{os.getpid()}")
                written.write_bytes(data)
                written.replace(known)
            return manifest
        return None

    # -------------------------------------------------------------------------------------------------------- writing

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Publish an artifact, and move it from ``folder`` to this machine's copies.

        It is kept in ``unsent`` until it is published. If another machine has published the artifact with other
        bytes, that one counts, and this one is dropped.

        Raises:
            InputError: it cannot be written. A later ``check`` sends it.
        """
        waiting = self._store.root / "unsent" / place_of(manifest)
        with held(self._lock_path(manifest.digest), f"another process that sends {manifest.address}"):
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(waiting)
            self._send(waiting, manifest)

    def _send_again(self, path: Path) -> None:
        try:
            manifest = Manifest.load(path / MANIFEST_NAME)
            for problem in manifest.damage(path, Checksums.read):
                raise DamagedArtifactError(problem)
        except DamagedArtifactError as error:
            logger.warning("%s\n  remedy: it was not sent yet, and is built again", error)
            shutil.rmtree(path, ignore_errors=True)
            return
        logger.warning("sending %s, which an earlier run has built and could not send", manifest.address)
        self._send(path, manifest)

    def _send(self, folder: Path, manifest: Manifest) -> None:
        try:
            counts = self._put(folder, manifest)
        except InputError as error:
            raise InputError(
                f"{manifest.address} was built, but cannot be sent to {self.url}.",
                got=error.details.get("got", error.what),
                remedy=f"{error.details.get('remedy')}. Run the same command again: the artifact is kept in "
                f"{folder}, and is then sent and not built",
            ) from None
        if counts:
            self._store.keep(folder, manifest)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._listed.pop(f"{manifest.kind}/{manifest.series}", None)

    def _put(self, folder: Path, manifest: Manifest) -> bool:
        """Write an artifact. Returns whether what is there now has these bytes."""
        place = place_of(manifest)
        base, name = f"{FILES}/{place}/{manifest.content}", f"{ARTIFACTS}/{place}/{MANIFEST_NAME}"
        files: dict[str, Path | bytes] = {f"{base}/{file}": folder / file for file in manifest.files}
        patiently(lambda: self.location.send_all(files, manifest.address))
        data = (folder / MANIFEST_NAME).read_bytes()
        while patiently(lambda: create(self.location, name, data)) is None:
            seen = patiently(lambda: look(self.location, name))
            there = patiently(lambda: self.location.read(name))
            if seen is None or there is None:
                continue  # It has just been removed.
            try:
                other = checked_manifest(there, f"{self.url}/{name}")
            except DamagedArtifactError:
                if patiently(lambda tag=seen.tag: replace(self.location, name, data, tag)) is not None:  # type: ignore[misc]
                    break
                continue
            if other.content != manifest.content:
                logger.warning(
                    "another machine has published %s first, with other bytes: those count", manifest.address
                )
                self.location.remove_all(base)
                return False
            break
        return True

    def remove(self, place: str) -> None:
        """Remove the artifact at ``place``, its manifest first, so that nobody finds half of it.

        Raises:
            InputError: the location cannot be written.
        """
        for folder in (f"{ARTIFACTS}/{place}", f"{FILES}/{place}"):
            if folder.startswith(ARTIFACTS):
                self.location.remove(f"{folder}/{MANIFEST_NAME}")
            self.location.remove_all(folder)
        with self._lock:
            self._listed.pop(place.rpartition("/")[0], None)

    # -------------------------------------------------------------------------------------------------------- sharing

    @contextlib.contextmanager
    def lease(self, digest: str) -> Iterator[None]:
        """Hold the lease of ``digest``. Waits while a process on another machine holds it.

        Raises:
            InputError: the location cannot be written.
        """
        self.presence.begin()
        lease = Lease(self.location, f"leases/{digest}.json", f"the build of {digest}")
        patiently(lease.take)
        self.forget()
        try:
            yield
        finally:
            lease.release()

    def _lock_path(self, digest: str) -> Path:
        return self._store.lock_path(f"send-{digest}")
