"""What is at the location of a shared store. A series is listed once, and a manifest is read once by each machine."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from factsmith.artifacts.artifact import Artifact, place_of
from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.remote.location import AT_ONCE, Location
from factsmith.artifacts.remote.mirror import ARTIFACTS, FILES, checked_manifest
from factsmith.artifacts.remote.shared.copies import Elsewhere, fetch
from factsmith.artifacts.remote.shared.patience import patiently
from factsmith.artifacts.remote.shared.users import Presence
from factsmith.artifacts.remote.transfer import ProgressBar
from factsmith.artifacts.remote.versions import Entry, entries
from factsmith.artifacts.store import Store

__all__ = ["Listing"]

logger = logging.getLogger(__name__)

_FRESH = 30.0
"""Seconds for which a listing is believed. Whoever is about to build takes a lease first, and then lists anew."""

_PLACE = re.compile(r"([a-z][a-z0-9_-]*/[0-9a-f]{32}/[0-9a-f]{32})/(.+)")


class Listing:
    """Finds artifacts at a location that several machines share.

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
        if not found:
            patiently(self.location.check)  # A bucket that does not exist looks empty.
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

    def named(self, kind: str, digest: str) -> list[str]:
        """The places of the artifact of that kind and digest, or of those of the series of that digest."""
        with self._lock:
            known = {series: found for series, (_, found) in self._listed.items() if series.startswith(f"{kind}/")}
        found = [f"{series}/{one}" for series, of_series in known.items() for one in of_series]
        # What a run has used need not be listed again.
        named = [place for place in found if digest in place.split("/")[1:]]
        return named or [place for place in self.places(kind) if digest in place.split("/")[1:]]

    def uses(self, series: str) -> None:
        """Note that the series with this address is used."""
        self.presence.uses(series)

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
        with contextlib.suppress(OSError, DamagedArtifactError):
            return _checked(known.read_bytes(), place, where)
        data = patiently(lambda: self.location.read(f"{ARTIFACTS}/{place}/{MANIFEST_NAME}"))
        if data is None:
            return None  # It has been removed since the listing.
        try:
            manifest = _checked(data, place, where)
        except DamagedArtifactError as error:
            logger.warning("%s\n  remedy: building it again", error)
            return None
        known.parent.mkdir(parents=True, exist_ok=True)
        written = known.with_name(f".{known.name}-{uuid.uuid4().hex[:8]}")
        written.write_bytes(data)
        written.replace(known)
        return manifest


def _checked(data: bytes, place: str, where: str) -> Manifest:
    manifest = checked_manifest(data, where)
    if place_of(manifest) != place:
        raise DamagedArtifactError(f"{where} is that of another artifact.", got=manifest.address)
    return manifest
