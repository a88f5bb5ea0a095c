"""What is in a store, by name. Nothing is checked but manifests."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Series

__all__ = ["Catalogue", "Upstream"]


class Upstream(Protocol):
    """The part of a store that several machines share. ``artifacts/remote/shared`` has it."""

    url: str

    def check(self) -> None: ...
    def find(self, place: str) -> Artifact | None: ...
    def members(self, series: Series, without: Collection[str]) -> list[Artifact]: ...
    def manifests(self, kind: str | None = None) -> Mapping[str, Manifest | None]: ...
    def places(self, kind: str | None = None) -> Collection[str]: ...
    def forget(self) -> None: ...
    def named(self, kind: str, digest: str) -> list[str]: ...
    def uses(self, series: str) -> None: ...
    def publish(self, folder: Path, manifest: Manifest) -> None: ...
    def remove(self, place: str) -> None: ...
    def lease(self, digest: str) -> AbstractContextManager[None]: ...
    def in_use(self) -> AbstractContextManager[None]: ...


class Catalogue:
    """Finds artifacts below ``root`` by name.

    Args:
        root: the folder.

    Attributes:
        upstream: what other machines see of the store; ``None`` if ``root`` is all there is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.upstream: Upstream | None = None

    @property
    def url(self) -> str | None:
        """Where the artifacts are if the store is shared."""
        return self.upstream.url if self.upstream else None

    @property
    def where(self) -> str:
        """Where the artifacts are, for messages."""
        return self.url or str(self.root)

    def look_again(self) -> None:
        """Believe no earlier listing of a shared store: processes elsewhere have published since."""
        if self.upstream is not None:
            self.upstream.forget()

    def path(self, place: str) -> Path:
        """The folder of the artifact at ``place`` on this machine, whether or not it is there."""
        return self.root / "artifacts" / place

    def all_paths(self) -> list[Path]:
        """The folders of all artifacts on this machine, with damaged ones, ordered by kind, series and digest."""
        return sorted(path for path in self.root.glob("artifacts/*/*/*") if path.is_dir())

    def places(self, kind: str | None = None) -> list[str]:
        """The places of all artifacts, or of those of a kind, with damaged ones, sorted."""
        found = {"/".join(path.parts[-3:]) for path in self.all_paths()}
        elsewhere = self.upstream.places(kind) if self.upstream else ()
        return sorted({place for place in found if kind is None or place.startswith(f"{kind}/")} | {*elsewhere})

    def manifests(self, kind: str | None = None) -> dict[str, Manifest | None]:
        """The manifest of every artifact by place, unchecked; ``None`` for one that cannot be read."""
        found = dict(self.upstream.manifests(kind)) if self.upstream else {}
        for path in self.all_paths():
            if kind in (None, path.parent.parent.name):
                place = "/".join(path.parts[-3:])
                with contextlib.suppress(DamagedArtifactError):
                    found[place] = Manifest.load(path / MANIFEST_NAME)
                found.setdefault(place, None)
        return dict(sorted(found.items()))

    def manifest_at(self, place: str) -> Manifest | None:
        """The manifest of the artifact at ``place``; ``None`` if there is none.

        Raises:
            DamagedArtifactError: it cannot be read.
        """
        path = self.path(place) / MANIFEST_NAME
        if path.is_file():
            return Manifest.load(path)
        found = self.upstream.find(place) if self.upstream else None
        return found.manifest if found else None

    def manifest(self, address: str) -> Manifest | None:
        """The manifest of the artifact ``kind/digest``, or of one of the series of that name, unchecked.

        ``None`` if there is none that can be read.
        """
        kind, _, digest = address.partition("/")
        found = self.places_of(kind, digest)
        if not found and self.upstream is not None:
            found = self.upstream.named(kind, digest)
        with contextlib.suppress(DamagedArtifactError):
            return self.manifest_at(found[0]) if found else None
        return None

    def places_of(self, kind: str, digest: str) -> list[str]:
        """The places on this machine of the artifact of that kind and digest, or of the series of that digest."""
        folder = self.root / "artifacts" / kind
        paths = [*sorted((folder / digest).glob("*")), *folder.glob(f"*/{digest}")]
        return ["/".join(path.parts[-3:]) for path in paths]

    def resolve(self, address: str) -> list[str]:
        """Places of the artifacts that an address names: ``kind/digest`` or a digest, which may be abbreviated.

        The digest of a series names all its artifacts.

        Raises:
            InputError: no artifact or series, or more than one, has that address.
        """
        kind, _, digest = address.rpartition("/")
        by_name: dict[str, list[str]] = {}
        for place in self.places(kind or None):
            for name in place.split("/")[1:]:
                if name.startswith(digest):
                    by_name.setdefault(name, []).append(place)
        if len(by_name) == 1:
            return by_name.popitem()[1]
        raise InputError(
            f"{len(by_name) or 'No'} artifacts or series match {address!r}.",
            got=", ".join(sorted(by_name)[:8]) or None,
            expected="a digest as `factsmith store ls` shows it, or enough of its first letters",
        )
