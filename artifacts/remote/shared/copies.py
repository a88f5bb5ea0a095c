"""Artifacts of a shared store that are elsewhere, and the copies of them that this machine makes."""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from factsmith.artifacts.artifact import Artifact, flush, place_of
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.processes.locks import held
from factsmith.artifacts.remote.location import AT_ONCE, Location
from factsmith.artifacts.remote.mirror import ARTIFACTS
from factsmith.artifacts.remote.shared.patience import patiently
from factsmith.artifacts.remote.transfer import ProgressBar
from factsmith.artifacts.remote.versions import remove_version
from factsmith.artifacts.store import Store

__all__ = ["Elsewhere", "fetch"]

logger = logging.getLogger(__name__)

_LARGE = 64 * 2**20
"""Bytes of an artifact whose progress is shown."""


class Elsewhere(Artifact):
    """An artifact whose files are fetched when its ``path`` is first read. Its manifest is here.

    Args:
        manifest: the manifest.
        fetch: brings the files, and returns their folder.
    """

    def __init__(self, manifest: Manifest, fetch: Callable[[], Path]) -> None:
        object.__setattr__(self, "manifest", manifest)
        object.__setattr__(self, "_fetch", fetch)

    def __getattr__(self, name: str) -> Any:
        if name != "path":
            raise AttributeError(name)
        object.__setattr__(self, "path", self._fetch())
        return self.path

    def __reduce__(self) -> tuple[type[Artifact], tuple[Path, Manifest]]:
        return Artifact, (self.path, self.manifest)


def fetch(store: Store, location: Location, manifest: Manifest, folder: str, tag: str, progress: ProgressBar) -> Path:
    """Copy an artifact to ``store``, unless it is there. Returns its folder.

    Args:
        store: this machine's copies.
        location: where the artifact is.
        manifest: its manifest.
        folder: the folder of its files there.
        tag: the version of its manifest there.
        progress: shows the progress of a large artifact.

    Raises:
        DamagedArtifactError: a file is gone or has other bytes than the manifest says, twice. The manifest there is set
            aside, so that whoever needs the artifact builds it again.
        InputError: the location cannot be read.
    """
    with held(store.lock_path(f"fetch-{manifest.digest}"), f"another process that fetches {manifest.address}"):
        if (found := store.copy(place_of(manifest))) is not None:
            return found.path
        staging = store.staging()
        for stale in staging.glob(f"fetch-{manifest.digest}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        draft = staging / f"fetch-{manifest.digest}-{uuid.uuid4().hex[:8]}"
        large = manifest.size > _LARGE
        try:
            with progress(f"fetch {manifest.kind}", manifest.size) if large else contextlib.nullcontext(None) as bar:
                problem = _download(location, manifest, folder, draft, bar) and _download(
                    location, manifest, folder, draft, None
                )
            if problem:
                raise _damaged(location, manifest, tag, problem)
            (draft / MANIFEST_NAME).write_bytes(manifest.dump())
            flush([draft / name for name in (*manifest.files, MANIFEST_NAME)])
            store.keep(draft, manifest)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return store.root / ARTIFACTS / place_of(manifest)


def _download(
    location: Location, manifest: Manifest, folder: str, draft: Path, bar: Callable[[int], None] | None
) -> str | None:
    """Fetch every file, and say what is wrong with them, if anything is."""

    def get(name: str) -> str | None:
        file = draft / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not patiently(lambda: location.fetch_if_there(f"{folder}/{name}", file)):
            return f"{location.url}/{folder}/{name} is gone"
        if bar is not None:
            bar(manifest.files[name].bytes)
        return None

    draft.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as readers:
        gone = [problem for problem in readers.map(get, manifest.files) if problem]
    return next(
        (
            one.replace(str(draft), f"{location.url}/{folder}")
            for one in [*gone, *manifest.damage(draft, Checksums.read)]
        ),
        None,
    )


def _damaged(location: Location, manifest: Manifest, tag: str, problem: str) -> DamagedArtifactError:
    """Set the manifest of a damaged artifact aside, and say so."""
    name = f"{ARTIFACTS}/{place_of(manifest)}/{MANIFEST_NAME}"
    try:
        location.send(manifest.dump(), f"damaged/{manifest.digest}-{uuid.uuid4().hex[:8]}.json")
        if not remove_version(location, name, tag):
            logger.info("%s has been replaced meanwhile", manifest.address)
        remedy = "run the same command again: it was set aside, and is built again"
    except InputError as error:
        remedy = f"somebody who may write there has to remove it: factsmith store rm {manifest.address} ({error.what})"
    return DamagedArtifactError(f"{manifest.address} is damaged: {problem}.", remedy=remedy)
