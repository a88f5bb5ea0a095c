"""The part of a shared store that all machines see. ``Store`` asks it for what it lacks, and publishes there first.

A manifest is written last, and only if there is none: the first publication of an artifact counts. The files beside it
are in a folder that is named by their checksum, so files of two publications never mix. Files are fetched when
they are first read, and checked against the manifest.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from factsmith.artifacts.artifact import place_of
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.processes.locks import held, held_at_once
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.mirror import ARTIFACTS, FILES, checked_manifest
from factsmith.artifacts.remote.shared.leases import Lease
from factsmith.artifacts.remote.shared.listing import Listing
from factsmith.artifacts.remote.shared.patience import patiently
from factsmith.artifacts.remote.transfer import ProgressBar
from factsmith.artifacts.remote.versions import create, look, replace
from factsmith.artifacts.store import Store

__all__ = ["RemoteUpstream"]

logger = logging.getLogger(__name__)


class RemoteUpstream(Listing):
    """The artifacts at a location that several machines share. The arguments are those of ``Listing``."""

    def __init__(self, store: Store, location: Location, progress: ProgressBar) -> None:
        super().__init__(store, location, progress)
        self._checked = False

    # ------------------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        """Check that the location can be written, and send what an earlier run could not send.

        Raises:
            InputError: it cannot. Nothing is left there.
        """
        if not self._checked:
            patiently(self.location.check)
            if self.location.is_local and not Path(self.location.join("")).is_dir():
                raise InputError(
                    f"There is no folder {self.location.join('')}.",
                    got=f"FACTSMITH_HOME={self.url}",
                    remedy="mount it, or make it once: an empty folder in place of the shared one would look like a "
                    "new store",
                )
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

    def in_use(self) -> AbstractContextManager[None]:
        """Others see in this context that this process uses the store, once it has looked at it."""
        return self.presence.shown()

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
