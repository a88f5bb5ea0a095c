"""Artifacts at a location, and those of the store, seen alike: by place, by address, by what they were made from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol

from factsmith.artifacts.artifact import place_of
from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.store import Store

__all__ = [
    "ARTIFACTS",
    "FILES",
    "LEFT_OUT",
    "Artifacts",
    "Mirror",
    "StoredArtifacts",
    "checked_manifest",
    "recipe_of",
    "resolve",
]

ARTIFACTS = "artifacts"

FILES = "files"
"""The folder with the files of artifacts that a shared store has published: ``KIND/SERIES/DIGEST/CONTENT/NAME``."""

LEFT_OUT = "manifests"
"""The folder with the manifests of artifacts that others were made from and that were left out, by kind and digest.

They keep the lineage whole: what an artifact was made from is known, even if it is not there."""

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_DIGEST = re.compile(r"[0-9a-f]{32}")


class Artifacts(Protocol):
    """Artifacts somewhere, by place (kind, series and digest)."""

    def places(self, kind: str | None = None) -> list[str]:
        """The places of all artifacts, or of those of a kind, sorted."""
        ...

    def manifest(self, place: str) -> Manifest | None:
        """The manifest of the artifact at a place; ``None`` if there is none."""
        ...

    def left_out(self, address: str) -> Manifest | None:
        """The manifest of an artifact that is not here itself; ``None`` if it is not known."""
        ...


class StoredArtifacts:
    """The artifacts of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def places(self, kind: str | None = None) -> list[str]:
        return self.store.places(kind)

    def manifest(self, place: str) -> Manifest | None:
        return self.store.manifest_at(place)

    def left_out(self, address: str) -> Manifest | None:
        path = self.store.root / LEFT_OUT / f"{address}.json"
        return Manifest.load(path) if path.is_file() else None

    def note(self, manifest: Manifest) -> None:
        """Keep the manifest of an artifact that is not here."""
        path = self.store.root / LEFT_OUT / f"{manifest.address}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.with_suffix(".part")
            written.write_bytes(manifest.dump())
            written.replace(path)


class Mirror:
    """The artifacts at a location. Listings and manifests are read once.

    Args:
        location: where they are.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._listed: dict[str, dict[str, dict[str, int]]] = {}
        self._manifests: dict[str, Manifest] = {}

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of artifacts that there are."""
        return [kind for kind in self.location.folders(ARTIFACTS) if _NAME.fullmatch(kind)]

    def listing(self, kind: str) -> dict[str, dict[str, int]]:
        """The bytes of every file of a kind, by place and name, whether or not the artifacts are whole."""
        if kind not in self._listed:
            found: dict[str, dict[str, int]] = {}
            for path, size in self.location.files(f"{ARTIFACTS}/{kind}").items():
                series, _, rest = path.partition("/")
                digest, _, name = rest.partition("/")
                if _DIGEST.fullmatch(series) and _DIGEST.fullmatch(digest) and name:
                    found.setdefault(f"{kind}/{series}/{digest}", {})[name] = size
            self._listed[kind] = found
        return self._listed[kind]

    def places(self, kind: str | None = None) -> list[str]:
        listed = [self.listing(one) for one in (self.kinds if kind is None else [kind])]
        return sorted(place for of_kind in listed for place, files in of_kind.items() if MANIFEST_NAME in files)

    def manifest(self, place: str) -> Manifest | None:
        """The manifest of the artifact at a place; ``None`` if there is none.

        Raises:
            InputError: it has been changed, is that of another artifact, or names files outside of its folder.
        """
        if place not in self._manifests:
            found = self._read(f"{ARTIFACTS}/{place}/{MANIFEST_NAME}")
            if found is None:
                return None
            if place_of(found) != place:
                raise self._unusable(f"{ARTIFACTS}/{place}", f"another artifact, {found.address}")
            self._manifests[place] = found
        return self._manifests[place]

    def left_out(self, address: str) -> Manifest | None:
        found = self._read(f"{LEFT_OUT}/{address}.json")
        return found if found is not None and found.address == address else None

    def folder(self, place: str, manifest: Manifest) -> str:
        """The folder with the files of an artifact: beside its manifest, or where a shared store has them."""
        of_content = f"{FILES}/{place}/{manifest.content}"
        is_shared = self._is_shared and bool(self.location.files(of_content))
        return of_content if is_shared else f"{ARTIFACTS}/{place}"

    @cached_property
    def _is_shared(self) -> bool:
        return bool(self.location.folders(FILES))

    def note(self, manifests: Iterable[Manifest]) -> None:
        """Keep the manifests of artifacts that are left out."""
        there = self.location.files(LEFT_OUT)
        new = {f"{one.address}.json": one.dump() for one in manifests}
        self.location.send_all(
            {f"{LEFT_OUT}/{name}": data for name, data in new.items() if name not in there}, "lineage"
        )

    def url(self, place: str, name: str = "") -> str:
        """The URL of an artifact, or of a file of it, for messages."""
        return "/".join(part for part in (self.location.url, ARTIFACTS, place, name) if part)

    def _read(self, name: str) -> Manifest | None:
        data = self.location.read(name)
        try:
            return None if data is None else checked_manifest(data, f"{self.location.url}/{name}")
        except DamagedArtifactError as error:
            raise self._unusable(name, error.what) from None

    def _unusable(self, name: str, got: str) -> InputError:
        return InputError(
            f"{self.location.url}/{name} cannot be used.",
            got=got,
            expected="an artifact as `factsmith store push` writes it",
            remedy="remove it there, and push it again",
        )


def checked_manifest(data: bytes, where: str) -> Manifest:
    """A manifest that comes from elsewhere.

    Raises:
        DamagedArtifactError: it was changed, does not match its recipe, or names files outside of its folder.
    """
    manifest = Manifest.parse(data, where)
    try:
        recipe = recipe_of(manifest)
    except (KeyError, TypeError, ValueError):
        raise DamagedArtifactError("no recipe that this version understands") from None
    kind, digest = recipe.series.kind, recipe.series.digest
    if not _NAME.fullmatch(kind) or (kind, digest) != (manifest.kind, manifest.series):
        raise DamagedArtifactError("a manifest that does not match its own recipe")
    if outside := [file for file in manifest.files if not _stays_inside(file)]:
        raise DamagedArtifactError(f"a file outside of the artifact: {outside[0]!r}")
    return manifest


def _stays_inside(name: str) -> bool:
    """Whether the file ``name`` of an artifact is in its folder, and is not its manifest."""
    parts = name.split("/")
    plain = not PurePosixPath(name).is_absolute() and not {"", ".", ".."} & set(parts)
    return plain and "\\" not in name and "\0" not in name and name != MANIFEST_NAME


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe that a manifest holds.

    Raises:
        KeyError, TypeError, ValueError: it holds another, such as one of another version.
    """
    content = manifest.recipe["series"]
    recipe = Recipe(
        Series(content["kind"], content["version"], content["parameters"], content["inputs"]), manifest.recipe["key"]
    )
    if json.loads(json.dumps(recipe.content)) != manifest.recipe or recipe.digest != manifest.digest:
        raise ValueError("the recipe is another")
    return recipe


def resolve(artifacts: Artifacts, name: str, where: object) -> list[str]:
    """The places that ``name`` stands for: a kind, ``kind/digest``, or a digest, of a series or of an artifact.

    Digests may be abbreviated.

    Args:
        artifacts: where to look.
        name: what to look for.
        where: where that is, for messages.

    Raises:
        InputError: no artifact or series, or more than one, has that name.
    """
    kind, _, digest = name.rpartition("/")
    if _NAME.fullmatch(name) and (of_kind := artifacts.places(name)):
        return of_kind
    places = artifacts.places(kind or None)
    by_name: dict[str, list[str]] = {}
    for place in places:
        _, *digests = place.split("/")
        for one in digests:
            if digest and one.startswith(digest):
                by_name.setdefault(one, []).append(place)
    if len(by_name) == 1:
        return by_name.popitem()[1]
    raise InputError(
        f"{len(by_name) or 'No'} artifacts or series in {where} match {name!r}.",
        got=", ".join(sorted(by_name)[:8]) or _kinds(places or artifacts.places()),
        expected="a kind such as covariance, or a digest as `factsmith store ls` shows it",
    )


def _kinds(places: Iterable[str]) -> str:
    found = sorted({place.partition("/")[0] for place in places})
    return f"artifacts of the kinds {', '.join(found)}" if found else "no artifacts at all"
