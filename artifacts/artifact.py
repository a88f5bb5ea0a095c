"""An artifact in the store, and one that is being built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factsmith.artifacts.manifest import Manifest
from factsmith.artifacts.recipe import Recipe

__all__ = ["Artifact", "Draft"]


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
        return f"{self.manifest.kind}/{self.manifest.series}/{self.digest}"

    @property
    def key(self) -> dict[str, Any]:
        """The artifact's key within its series."""
        return dict(self.manifest.recipe["key"])

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.summary


class Draft:
    """An artifact that is being built. Files are written below ``path``.

    Attributes:
        path: the staging folder.
        summary: the manifest's summary.
        made: device and settings to record in the manifest, outside the recipe.
        lineage: addresses of the artifacts that were read.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.recipe = recipe
        self.summary: dict[str, Any] = {}
        self.made: dict[str, Any] = {}
        self.lineage: list[str] = []

    def read_from(self, *artifacts: Artifact) -> None:
        """Record that ``artifacts`` were read to build this one."""
        self.lineage += [artifact.address for artifact in artifacts]
