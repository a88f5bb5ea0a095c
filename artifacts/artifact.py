"""An artifact in the store, and one that is being built."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest, code_versions
from factsmith.artifacts.recipe import Recipe

__all__ = ["Artifact", "Draft", "flush", "place_of"]


@dataclass(frozen=True)
class Artifact:
    """A published artifact: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def address(self) -> str:
        return self.manifest.address

    @property
    def place(self) -> str:
        """Where the artifact is in its store: kind, series and digest."""
        return place_of(self.manifest)

    @property
    def key(self) -> dict[str, Any]:
        """The artifact's key within its series."""
        return dict(self.manifest.recipe["key"])

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.summary


def place_of(manifest: Manifest) -> str:
    """Where the artifact of ``manifest`` is in a store: kind, series and digest."""
    return f"{manifest.kind}/{manifest.series}/{manifest.digest}"


class Draft:
    """An artifact that is being built. Files are written below ``path``.

    Attributes:
        path: the staging folder.
        summary: the manifest's summary.
        made: device and settings to record in the manifest, outside the recipe.
        lineage: addresses of the artifacts that were read.
        copied: the manifest of an artifact that is copied from elsewhere, and keeps it.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        self.summary: dict[str, Any] = {}
        self.made: dict[str, Any] = {}
        self.lineage: list[str] = []
        self.copied: Manifest | None = None

    def read_from(self, *artifacts: Artifact) -> None:
        """Record that ``artifacts`` were read to build this one."""
        self.lineage += [artifact.address for artifact in artifacts]

    def seal(self, seconds: float) -> Manifest:
        """Write the manifest, and flush everything to the disk.

        Args:
            seconds: duration of the build.

        Raises:
            DamagedArtifactError: as in ``manifest``.
        """
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        files = {
            path.relative_to(self.path).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=checksum)
            for path, checksum in Checksums.read_all(paths).items()
        }
        manifest = self.manifest(files, seconds)
        (self.path / MANIFEST_NAME).write_bytes(manifest.dump())
        flush([*paths, self.path / MANIFEST_NAME])
        return manifest

    def manifest(self, files: Mapping[str, FileEntry], seconds: float) -> Manifest:
        """The manifest to publish these ``files`` with.

        Args:
            files: size and checksum of every file, by relative path.
            seconds: duration of the build.

        Raises:
            DamagedArtifactError: the artifact is copied, and a file is not as its manifest says.
        """
        if self.copied is not None:
            for name in sorted(files.keys() | self.copied.files.keys()):
                if files.get(name) != self.copied.files.get(name):
                    raise DamagedArtifactError(name, got=files.get(name), expected=self.copied.files.get(name))
            return self.copied
        series = self.recipe.series
        return Manifest(
            kind=series.kind,
            digest=self.recipe.digest,
            series=series.digest,
            recipe=self.recipe.content,
            lineage=tuple(sorted(set(self.lineage))),
            content=Manifest.content_of(files),
            files=dict(files),
            summary=self.summary,
            made={**code_versions(), **self.made},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
        )


def flush(paths: Iterable[Path]) -> None:
    """Flush ``paths`` and their folders to the disk."""
    paths = list(paths)
    for path in [*paths, *{path.parent for path in paths if path.is_file()}]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
