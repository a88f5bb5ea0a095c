"""The artifact store: a folder of immutable, checksummed artifacts, each found by its recipe.

An artifact is built in a staging folder and becomes visible by one rename, so a reader never sees half of it. A build
holds a file lock on its recipe. A second process waits, and then finds the artifact. The kernel releases the lock of a
killed process, and the next build removes what that process left in staging. All users of the store share another lock.
Removing artifacts needs this lock exclusively, so nothing is removed while somebody may be reading it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import DamagedArtifactError, FactsmithError, InputError
from factsmith.artifacts.locks import IN_USE, held, shared
from factsmith.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest
from factsmith.artifacts.recipe import Recipe, Series

__all__ = ["Store", "unwritable"]

logger = logging.getLogger(__name__)

_HOUR = 3600.0

_PUBLISHERS = 4
"""Most artifacts that are hashed and flushed to the disk at once, while the next one is built."""

K = TypeVar("K")


class Store:
    """Artifacts below ``root``.

    Args:
        root: the folder. The first build makes it.

    Attributes:
        source: brings the artifact of a recipe from elsewhere if this store lacks it, and says whether it did.
        brought: addresses of the artifacts that it brought, and of their series.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self.source: Callable[[Recipe], bool] | None = None
        self.brought: set[str] = set()
        self.checksums = Checksums(self.root / "checksums.sqlite")

    def check_writable(self) -> None:
        """
        Raises:
            InputError: ``root`` cannot be written.
        """
        self._writable("staging")

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
        path = self.root / "artifacts" / place
        return self._found(path) if os.path.lexists(path) else None

    def members(self, series: Series) -> list[Artifact]:
        """The artifacts of ``series``, ordered by digest. Damaged ones are moved aside, as in ``find``."""
        folder = self._series_path(series.kind, series.digest)
        if not folder.is_dir():
            return []
        found = [self._found(path) for path in sorted(folder.iterdir())]
        return [artifact for artifact in found if artifact is not None]

    def all_paths(self) -> list[Path]:
        """The folders of all artifacts, with damaged ones, ordered by kind, series and digest."""
        return sorted(path for path in self.root.glob("artifacts/*/*/*") if path.is_dir())

    def manifest(self, address: str) -> Manifest | None:
        """The manifest of the artifact ``kind/digest``, or of one of the series of that name, unchecked.

        ``None`` if there is none that can be read.
        """
        kind, _, digest = address.partition("/")
        folder = self.root / "artifacts" / kind
        for path in [*sorted((folder / digest).glob("*")), *folder.glob(f"*/{digest}")][:1]:
            with contextlib.suppress(DamagedArtifactError):
                return Manifest.load(path / MANIFEST_NAME)
        return None

    def resolve(self, address: str) -> list[Path]:
        """Folders of the artifacts that an address names: ``kind/digest`` or a digest, which may be abbreviated.

        The digest of a series names all its artifacts.

        Raises:
            InputError: no artifact or series, or more than one, has that address.
        """
        kind, _, digest = address.rpartition("/")
        by_name: dict[str, list[Path]] = {}
        for path in self.all_paths():
            if kind in ("", path.parent.parent.name):
                for name in (path.name, path.parent.name):
                    if name.startswith(digest):
                        by_name.setdefault(name, []).append(path)
        if len(by_name) == 1:
            return by_name.popitem()[1]
        raise InputError(
            f"{len(by_name) or 'No'} artifacts or series match {address!r}.",
            got=", ".join(sorted(by_name)[:8]) or None,
            expected="a digest as `factsmith store ls` shows it, or enough of its first letters",
        )

    # --------------------------------------------------------------- building

    @contextlib.contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Hold the lock of ``digest``. Waits while another process holds it."""
        with self.in_use(), held(self.lock_path(digest), f"another process that builds {digest}"):
            yield

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nothing is removed from the store in this context."""
        with shared(self.lock_path(IN_USE), "another process that removes artifacts"):
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
        found = self.find(recipe)
        if found is None:
            raise FactsmithError(f"{recipe.address} was built but cannot be read back from {self.root}.")
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
                        logger.warning("%s\n  remedy: moved to %s; building it again", error, aside)
                    return None
        _note_use(path)
        return artifact

    # ---------------------------------------------------------------- helpers

    def _series_path(self, kind: str, series: str) -> Path:
        return self.root / "artifacts" / kind / series

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
        staging = self._writable("staging")
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
        paths = sorted(path for path in draft.path.rglob("*") if path.is_file())
        files = {
            path.relative_to(draft.path).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=checksum)
            for path, checksum in Checksums.read_all(paths).items()
        }
        manifest = draft.manifest(files, seconds)
        (draft.path / MANIFEST_NAME).write_bytes(manifest.dump())
        _sync([*paths, draft.path / MANIFEST_NAME])
        final = self.root / "artifacts" / self.place(draft.recipe)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft.path.rename(final)
        _sync([final.parent])
        self.checksums.remember({final / name: entry.sha256 for name, entry in files.items()})


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


def _sync(paths: Iterable[Path]) -> None:
    """Flush ``paths`` and their folders to the disk."""
    paths = list(paths)
    for path in [*paths, *{path.parent for path in paths if path.is_file()}]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
