"""What goes along with artifacts that are moved: what they were made from, as far as it is of use."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from factsmith.artifacts.manifest import Manifest
from factsmith.artifacts.remote.mirror import Artifacts

__all__ = ["Selection", "with_lineage"]

_READ_AGAIN = {"factor", "directions"}
"""Kinds whose makers read the keys themselves where no C0 stands between."""


@dataclass
class Selection:
    """Artifacts to move.

    Attributes:
        moved: the manifest of each, by place, sources first.
        left_out: the manifests of sources that stay behind, by address.
        unknown: addresses of sources of which nothing is known here.
    """

    moved: dict[str, Manifest] = field(default_factory=dict)
    left_out: dict[str, Manifest] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def with_lineage(
    artifacts: Artifacts, places: Iterable[str], *, keys: bool, without: Collection[str] = ()
) -> Selection:
    """The artifacts at ``places`` and everything that they were made from, directly or indirectly.

    Keys stay behind if C0 was made from them: they are large, and whoever has C0 need not read them. Those that a
    factor was made from directly go along.

    Args:
        artifacts: where they are.
        places: the artifacts. They are moved whatever their kind.
        keys: whether keys go along in any case.
        without: kinds of sources that stay behind.
    """
    found = Selection()
    index: dict[str, dict[str, str]] = {}

    def place_named(address: str) -> str | None:
        kind, _, digest = address.partition("/")
        if kind not in index:
            index[kind] = {place.rpartition("/")[2]: place for place in artifacts.places(kind)}
        return index[kind].get(digest)

    def stays(kind: str, user: str) -> bool:
        return kind in without or (kind == "keys" and not keys and user not in _READ_AGAIN)

    seen: set[tuple[str, bool]] = set()

    def visit(manifest: Manifest) -> None:
        for address in _sources(manifest):
            kind = address.partition("/")[0]
            left = stays(kind, manifest.kind)
            place = None
            source = artifacts.left_out(address) if left else None
            if source is None and (place := place_named(address)) is not None:
                source = artifacts.manifest(place)
            source = source or artifacts.left_out(address)
            if source is None:
                if address in manifest.lineage and address not in found.unknown:
                    found.unknown.append(address)
                continue
            moves = place is not None and not left
            if (address, moves) in seen or (address, True) in seen:
                continue
            seen.add((address, moves))
            visit(source)
            if place is not None and moves:
                found.moved[place] = source
            else:
                found.left_out[address] = source

    for place in places:
        manifest = artifacts.manifest(place)
        if manifest is not None and place not in found.moved:
            visit(manifest)
            found.moved[place] = manifest
            seen.add((manifest.address, True))
    for manifest in found.moved.values():
        found.left_out.pop(manifest.address, None)
    return found


def _sources(manifest: Manifest) -> list[str]:
    """Addresses of what an artifact was made from: its lineage, and what its recipe may name beside it."""
    inputs = manifest.recipe["series"]["inputs"]
    return [*manifest.lineage, *(f"{role}/{digest}" for role, digest in inputs.items() if role == "model")]
