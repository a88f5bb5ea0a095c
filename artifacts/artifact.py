"""An artifact in the store, and one that is being built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.artifacts.manifest import FileEntry, Manifest, code_versions
from factsmith.artifacts.recipe import Recipe

__all__ = ["Artifact", "Draft", "place_of"]


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
