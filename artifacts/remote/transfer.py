"""Artifacts that are moved between a store and a mirror. Nothing is overwritten, on either side.

A push writes an artifact's files, then its manifest. Until then a marker beside them says which bytes are being
written, so that a killed push continues, and another machine's bytes are not mixed with them. A pull publishes an
artifact in the store only if each file has the checksum that its manifest says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from factsmith.artifacts.errors import DamagedArtifactError, InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Recipe
from factsmith.artifacts.remote.lineage import Selection
from factsmith.artifacts.remote.location import AT_ONCE
from factsmith.artifacts.remote.mirror import ARTIFACTS, Mirror, StoredArtifacts, recipe_of
from factsmith.artifacts.store import Store

__all__ = ["Lookup", "Moved", "ProgressBar", "fetch", "pull", "push"]

ProgressBar: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of long work, by its name and the number of its items."""

_MARKER = "pushing.json"


@dataclass(frozen=True)
class Moved:
    """What became of an artifact.

    Attributes:
        address: its address.
        state: ``moved`` now, or ``there`` already; ``there, other bytes`` if another machine has made it.
        files: number of files that were moved, or would be.
        bytes: their size.
    """

    address: str
    state: Literal["moved", "there", "there, other bytes"]
    files: int = 0
    bytes: int = 0


# -------------------------------------------------------------------------------------------------------------- push


def push(store: Store, mirror: Mirror, chosen: Selection, progress: ProgressBar, *, dry_run: bool) -> list[Moved]:
    """Write artifacts of a store to a mirror, sources first.

    Args:
        store: the store.
        mirror: where to write.
        chosen: the artifacts.
        progress: shows the progress.
        dry_run: whether to look only.

    Raises:
        InputError: the mirror cannot be used, or holds something else in the place of an artifact.
        DamagedArtifactError: an artifact is damaged in the store. It is not written.
    """
    mirror.location.check()
    plans = [(place, manifest, *_lacking(mirror, place, manifest)) for place, manifest in chosen.moved.items()]
    moved = [
        Moved(manifest.address, state, len(names), sum(manifest.files[name].bytes for name in names))
        for _, manifest, state, names in plans
    ]
    if dry_run:
        return moved
    with progress("push", sum(one.files for one in moved)) as advance:
        for place, manifest, state, names in plans:
            if state == "moved":
                _send(store, mirror, place, manifest, names, advance)
    mirror.note(chosen.left_out.values())
    return moved


def _lacking(
    mirror: Mirror, place: str, manifest: Manifest
) -> tuple[Literal["moved", "there", "there, other bytes"], list[str]]:
    """What pushing an artifact would do: its state, and the names of the files that the mirror lacks."""
    there = mirror.listing(manifest.kind).get(place, {})
    ours = manifest.content
    if MANIFEST_NAME in there:
        found = mirror.manifest(place)
        if found is not None and found.content != ours:
            return "there, other bytes", []
        if mirror.folder(place, manifest) != f"{ARTIFACTS}/{place}":
            return "there", []
    elif _MARKER in there and _pushing(mirror, place) != ours:
        there = {}  # Files that another machine has begun to write.
    elif _MARKER not in there:
        there = {}
    lacking = [name for name, entry in manifest.files.items() if there.get(name) != entry.bytes]
    return ("there" if MANIFEST_NAME in there and not lacking else "moved"), lacking


def _pushing(mirror: Mirror, place: str) -> str | None:
    """The content checksum of the artifact whose files are being written."""
    data = mirror.location.read(f"{ARTIFACTS}/{place}/{_MARKER}")
    try:
        return str(json.loads(data)["content"]) if data else None
    except (ValueError, KeyError, TypeError):
        return None


def _send(
    store: Store, mirror: Mirror, place: str, manifest: Manifest, names: Iterable[str], advance: Callable[[int], None]
) -> None:
    artifact = store.at(place)
    if artifact is None:
        raise DamagedArtifactError(
            f"{manifest.address} is damaged, and was moved aside. It is not pushed.",
            remedy="run the flow that made it again, then push again",
        )
    location, folder = mirror.location, f"{ARTIFACTS}/{place}"
    files: dict[str, Path | bytes] = {f"{folder}/{name}": artifact.path / name for name in names}
    if location.commits:
        location.send_all({**files, f"{folder}/{MANIFEST_NAME}": manifest.dump()}, manifest.address)
        advance(len(files))
        return
    if _pushing(mirror, place) != manifest.content:
        if MANIFEST_NAME not in mirror.listing(manifest.kind).get(place, {}):
            for name in location.files(folder):  # Files of unknown bytes, which a later push would take for ours.
                location.remove(f"{folder}/{name}")
        location.send(json.dumps({"content": manifest.content}).encode(), f"{folder}/{_MARKER}")
    location.send_all(files, manifest.address, advance)
    if _pushing(mirror, place) != manifest.content:
        raise InputError(
            f"Somebody else is pushing {manifest.address} to {mirror.location.url}.",
            got="other bytes than those of this store",
            remedy="wait until they have finished",
        )
    location.send(manifest.dump(), f"{folder}/{MANIFEST_NAME}")
    for name in location.files(folder).keys() - manifest.files.keys() - {MANIFEST_NAME}:
        location.remove(f"{folder}/{name}")  # The marker, and parts of files that a killed push has left.


# -------------------------------------------------------------------------------------------------------------- pull


def pull(store: Store, mirror: Mirror, chosen: Selection, progress: ProgressBar, *, dry_run: bool) -> list[Moved]:
    """Read artifacts of a mirror into a store, sources first.

    Args:
        store: the store.
        mirror: where they are.
        chosen: the artifacts.
        progress: shows the progress.
        dry_run: whether to look only.

    Raises:
        InputError: the mirror cannot be read, or a file there has other bytes than its manifest says; names it.
    """
    moved = []
    for place, manifest in chosen.moved.items():
        found = store.at(place)
        if found is None:
            moved.append(Moved(manifest.address, "moved", len(manifest.files), manifest.size))
        else:
            same = found.manifest.content == manifest.content
            moved.append(Moved(manifest.address, "there" if same else "there, other bytes"))
    if dry_run:
        return moved
    with progress("pull", sum(one.files for one in moved)) as advance:
        for one, (place, manifest) in zip(moved, chosen.moved.items(), strict=True):
            if one.state == "moved":
                fetch(store, mirror, place, manifest, advance)
    for manifest in chosen.left_out.values():
        StoredArtifacts(store).note(manifest)
    return moved


def fetch(store: Store, mirror: Mirror, place: str, manifest: Manifest, advance: Callable[[int], None]) -> None:
    """Read one artifact of a mirror into a store.

    Raises:
        InputError: as in ``pull``.
    """
    recipe = recipe_of(manifest)
    with store.lock(recipe.digest):
        if store.at(place) is not None:  # Another process has brought or built it meanwhile.
            advance(len(manifest.files))
            return
        folder = mirror.folder(place, manifest)
        try:
            with store.draft(recipe) as draft:
                draft.copied = manifest

                def get(name: str) -> None:
                    file = draft.path / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    mirror.location.fetch(f"{folder}/{name}", file)
                    advance(1)

                with ThreadPoolExecutor(AT_ONCE) as readers:
                    list(readers.map(get, manifest.files))
        except DamagedArtifactError as error:
            raise InputError(
                f"{mirror.url(place, error.what)} is damaged: it has other bytes than were pushed. Nothing of "
                f"{manifest.address} is in the store.",
                got=error.details.get("got"),
                expected=error.details.get("expected"),
                remedy="remove the artifact there, and push it again from a store that has it",
            ) from None


class Lookup:
    """Brings artifacts that a store lacks from a mirror. Each is looked for once.

    Args:
        store: the store that lacks them.
        mirror: where to look.
        kinds: the kinds to look for.
        progress: shows the progress of large artifacts.

    Attributes:
        url: where the mirror is.
    """

    def __init__(self, store: Store, mirror: Mirror, kinds: Collection[str], progress: ProgressBar) -> None:
        self.url = mirror.location.url
        self._store = store
        self._mirror = mirror
        self._kinds = kinds
        self._progress = progress
        self._asked: set[str] = set()

    def __call__(self, recipe: Recipe) -> bool:
        """Bring the artifact of ``recipe``, and say whether the mirror has it.

        Raises:
            InputError: the mirror cannot be read, or its artifact is damaged.
        """
        if recipe.series.kind not in self._kinds or recipe.digest in self._asked:
            return False
        self._asked.add(recipe.digest)
        place = self._store.place(recipe)
        manifest = self._mirror.manifest(place)
        if manifest is None:
            return False
        with self._progress(f"fetch {recipe.series.kind}", len(manifest.files)) as advance:
            fetch(self._store, self._mirror, place, manifest, advance)
        self._store.brought |= {recipe.address, recipe.series.address}
        return True
