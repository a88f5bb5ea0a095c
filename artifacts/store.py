"""The artifact store: a folder of immutable, checksummed artifacts, each found by its recipe.

An artifact is built in a staging folder and becomes visible by one rename, so a reader never sees half of it. A build
holds a file lock on its recipe. A second process waits, and then finds the artifact. The kernel releases the lock of a
killed process, and the next build removes what that process left in staging. All users of the store share another lock.
Removing artifacts needs this lock exclusively, so nothing is removed while somebody may be reading it.

A store that several machines share has an ``Upstream`` too, and the folder holds this machine's copies.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from factsmith.artifacts.artifact import Artifact, Draft, flush, place_of
from factsmith.artifacts.catalogue import Catalogue
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import DamagedArtifactError, FactsmithError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.processes.locks import IN_USE, held, shared
from factsmith.artifacts.recipe import Recipe, Series

__all__ = ["Store", "unwritable"]

logger = logging.getLogger(__name__)

_HOUR = 3600.0

_PUBLISHERS = 4
"""Most artifacts that are hashed and flushed to the disk at once, while the next one is built."""

_DIGEST = re.compile("[0-9a-f]{32}")

K = TypeVar("K")


class Store(Catalogue):
    """Artifacts below ``root``.

    Args:
        root: the folder. The first build makes it.

    Attributes:
        source: brings the artifact of a recipe from elsewhere if this store lacks it, and says whether it did.
        brought: addresses of the artifacts that it brought, and of their series.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root.expanduser().resolve())
        self.source: Callable[[Recipe], bool] | None = None
        self.brought: set[str] = set()
        self.checksums = Checksums(self.root / "checksums.sqlite")

    def check_writable(self) -> None:
        """
        Raises:
            InputError: the store cannot be written.
        """
        self.staging()
        if self.upstream is not None:
            self.upstream.check()

    # ---------------------------------------------------------------- finding

    def find(self, recipe: Recipe) -> Artifact | None:
        """The artifact of ``recipe``, if it exists and is undamaged, or if ``source`` brings it.

        A damaged artifact is reported and moved aside, so that the caller builds it again.
        """
        if (found := self.at(place := self.place(recipe))) or self.source is None or not self.source(recipe):
            return found
        return self.at(place)

    @staticmethod
    def place(recipe: Recipe) -> str:
        """Where the artifact of ``recipe`` is: kind, series and digest."""
        return f"{recipe.series.kind}/{recipe.series.digest}/{recipe.digest}"

    def at(self, place: str) -> Artifact | None:
        """The artifact at ``place``. A damaged one is moved aside, as in ``find``."""
        found = self.copy(place)
        if self.upstream is None:
            return found
        if found is None:
            return self.upstream.find(place)
        self.upstream.uses(place.rpartition("/")[0])
        return found

    def copy(self, place: str) -> Artifact | None:
        """The artifact at ``place`` in this machine's folder. A damaged one is moved aside, as in ``find``."""
        path = self.path(place)
        return self._found(path) if os.path.lexists(path) else None

    def members(self, series: Series, *, here: bool = False) -> list[Artifact]:
        """The artifacts of ``series``, ordered by digest. Damaged ones are moved aside, as in ``find``.

        Args:
            series: the series.
            here: whether to look in this machine's folder only.
        """
        folder = self.path(series.address)
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [artifact for path in paths if (artifact := self._found(path)) is not None]
        if self.upstream is None or here:
            return found
        self.upstream.uses(series.address)
        elsewhere = self.upstream.members(series, {artifact.digest for artifact in found})
        return sorted([*found, *elsewhere], key=lambda artifact: artifact.digest)

    # --------------------------------------------------------------- building

    @contextlib.contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Hold the lock of ``digest``. Waits while another process holds it, on any machine if it is a digest.

        Other names are locked on this machine.

        Raises:
            InputError: the store is shared, and its lease cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(self.in_use())
            stack.enter_context(held(self.lock_path(digest), f"another process that builds {digest}"))
            if self.upstream is not None and _DIGEST.fullmatch(digest):
                stack.enter_context(self.upstream.lease(digest))
            yield

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nothing is removed from the store in this context."""
        with ExitStack() as stack:
            stack.enter_context(shared(self.lock_path(IN_USE), "another process that removes artifacts"))
            if self.upstream is not None:
                stack.enter_context(self.upstream.in_use())
            yield

    def lock_path(self, name: str) -> Path:
        """The file of a lock. Makes its folder."""
        return self._writable("locks") / name

    @contextlib.contextmanager
    def draft(self, recipe: Recipe) -> Iterator[Draft]:
        """Build the artifact of ``recipe``. The caller holds ``lock``.

        The artifact is published at the end of the context. After an error, nothing is visible.
        """
        started = time.perf_counter()
        with self._staged(recipe) as draft:
            yield draft
        self._finish(draft, time.perf_counter() - started)

    def get_or_build(self, recipe: Recipe, build: Callable[[Draft], None]) -> tuple[Artifact, bool]:
        """The artifact of ``recipe``, and whether it was built now."""
        if found := self.find(recipe):
            return found, False
        with self.lock(recipe.digest):
            if found := self.find(recipe):
                return found, False
            with self.draft(recipe) as draft:
                build(draft)
        return self.get(recipe), True

    def get_or_build_each(
        self, recipes: Mapping[K, Recipe], build: Callable[[Draft, K], None]
    ) -> tuple[dict[K, Artifact], bool]:
        """The artifact of each recipe, by the same keys, and whether any was built now.

        Artifacts are built one after the other. One is hashed and flushed to the disk while the next is built.
        """
        any_built = False
        absent = [key for key, recipe in recipes.items() if self.find(recipe) is None]
        with contextlib.ExitStack() as locks, ThreadPoolExecutor(_PUBLISHERS) as publishers:
            published: list[Future[None]] = []
            for key in absent:
                recipe = recipes[key]
                locks.enter_context(self.lock(recipe.digest))
                if self.find(recipe):  # Another process has built it meanwhile.
                    continue
                started = time.perf_counter()
                with self._staged(recipe) as draft:
                    build(draft, key)
                published.append(publishers.submit(self._finish, draft, time.perf_counter() - started))
                any_built = True
            for one in published:
                one.result()
        return {key: self.get(recipe) for key, recipe in recipes.items()}, any_built

    def get(self, recipe: Recipe) -> Artifact:
        """The artifact of ``recipe``, which must exist."""
        if (found := self.find(recipe)) is None:
            self.look_again()
            found = self.find(recipe)
        if found is None:
            raise FactsmithError(f"{recipe.address} was built but cannot be read back from {self.where}.")
        return found

    # -------------------------------------------------------------- verifying

    def verify(self, path: Path) -> list[str]:
        """Read every byte of the artifact at ``path``. Returns what is wrong, one line for each file."""
        try:
            manifest = Manifest.load(path / MANIFEST_NAME)
        except DamagedArtifactError as error:
            return [error.what]
        if manifest.digest != path.name:
            return [f"{path} holds another artifact, {manifest.address}"]
        return list(manifest.damage(path, Checksums.read))

    def _open(self, path: Path) -> Artifact:
        manifest = Manifest.load(path / MANIFEST_NAME)
        if (manifest.digest, manifest.series, manifest.kind) != (path.name, path.parent.name, path.parent.parent.name):
            raise DamagedArtifactError(f"{path} holds another artifact.", got=manifest.address)
        for problem in manifest.damage(path, self.checksums.sha256):
            raise DamagedArtifactError(f"{manifest.address} is damaged: {problem}.")
        return Artifact(path, manifest)

    def _found(self, path: Path) -> Artifact | None:
        """The artifact at ``path``, marked as used. A damaged one is reported and moved aside."""
        try:
            artifact = self._open(path)
        except DamagedArtifactError:
            with self.lock("damaged"):
                try:  # Another process may have moved it aside and built it again.
                    artifact = self._open(path)
                except DamagedArtifactError as error:
                    if os.path.lexists(path):
                        aside = self._set_aside(path)
                        logger.warning("%s\n  remedy: moved to %s; it is built again if it is needed", error, aside)
                    return None
        _note_use(path)
        return artifact

    # ---------------------------------------------------------------- helpers

    def staging(self) -> Path:
        """The folder in which artifacts are built. Makes it."""
        return self._writable("staging")

    def _writable(self, name: str) -> Path:
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.root, error) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise unwritable(self.root, "permission denied")
        return folder

    @contextlib.contextmanager
    def _staged(self, recipe: Recipe) -> Iterator[Draft]:
        """A draft of ``recipe``, which is removed after an error and is otherwise left for ``_finish``."""
        staging = self.staging()
        for stale in staging.glob(f"{recipe.digest}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        draft = Draft(staging / f"{recipe.digest}-{uuid.uuid4().hex[:8]}", recipe)
        try:
            draft.path.mkdir()
            yield draft
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise

    def _finish(self, draft: Draft, seconds: float) -> None:
        try:
            self._publish(draft, seconds)
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)

    def _set_aside(self, path: Path) -> Path:
        aside = self._writable("damaged") / f"{path.name}-{uuid.uuid4().hex[:8]}"
        path.rename(aside)
        return aside

    def _publish(self, draft: Draft, seconds: float) -> None:
        manifest = draft.seal(seconds)
        if self.upstream is None:
            self.keep(draft.path, manifest)
        else:
            self.upstream.publish(draft.path, manifest)

    def keep(self, folder: Path, manifest: Manifest) -> None:
        """Make the folder of a finished artifact the one that is read. If there is one already, that one stays."""
        final = self.path(place_of(manifest))
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            logger.warning("%s was built twice at the same time; the first one counts", manifest.address)
            shutil.rmtree(folder)
            return
        flush([final.parent])
        self.checksums.remember({final / name: entry.sha256 for name, entry in manifest.files.items()})


def unwritable(root: Path, reason: object) -> InputError:
    """The error that the store's folder cannot be written."""
    return InputError(
        f"The store {root} cannot be written.",
        got=reason,
        remedy="set FACTSMITH_HOME to a folder you may write to",
    )


def _note_use(path: Path) -> None:
    """Set the folder's modification time to the time of this use, to the hour. Its files keep their times."""
    with contextlib.suppress(OSError):  # The store may be read-only.
        if time.time() - path.stat().st_mtime > _HOUR:
            os.utime(path)
