"""``factsmith store push`` and ``pull``: artifacts travel with their lineage."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.cli.common import AsJson
from factsmith.tasks.planning.home import open_store

if TYPE_CHECKING:
    from factsmith.artifacts.remote.lineage import Selection
    from factsmith.artifacts.remote.mirror import Artifacts
    from factsmith.artifacts.remote.transfer import Moved

__all__ = ["pull", "push"]

_URL = "a folder, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, hf://datasets/OWNER/NAME, ..."

WithKeys = Annotated[bool, typer.Option("--with-keys", help="also the keys that C0 was made from, which are large")]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without", metavar="KIND", help="leave out sources of this kind, such as tokens, which hold the text"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only show what would be moved")]


def push(
    name: Annotated[str, typer.Argument(metavar="REF", help="artifact, series (as `store ls` shows them) or kind")],
    url: Annotated[str, typer.Argument(metavar="URL", help=_URL)],
    with_keys: WithKeys = False,
    without: Without = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Copy artifacts of the store, and what they were made from, to URL.

    What is there already is not sent again and never overwritten. A push that was stopped continues. Keys stay behind
    unless a factor was made from them directly: whoever has C0 does not read them.
    """
    from factsmith.artifacts.remote.location import Location
    from factsmith.artifacts.remote.mirror import Mirror, StoredArtifacts
    from factsmith.artifacts.remote.transfer import push as send
    from factsmith.tasks.pipeline.progress import progress

    store, mirror = open_store(), Mirror(Location.open(url))
    chosen = _chosen(StoredArtifacts(store), name, store.root, with_keys=with_keys, without=without or [])
    with store.in_use(), _disk_full(url):
        moved = send(store, mirror, chosen, progress, dry_run=dry_run)
    _show(moved, chosen, "pushed", mirror.location.url, dry_run=dry_run, as_json=as_json)


def pull(
    name: Annotated[str, typer.Argument(metavar="REF", help="artifact, series or kind")],
    url: Annotated[str, typer.Argument(metavar="URL", help=_URL)],
    with_keys: WithKeys = False,
    without: Without = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Copy artifacts at URL, and what they were made from, to the store.

    Each file is checked against the checksum that it was pushed with. What the store has already stays as it is.
    """
    from factsmith.artifacts.remote.location import Location
    from factsmith.artifacts.remote.mirror import Mirror
    from factsmith.artifacts.remote.transfer import pull as receive
    from factsmith.tasks.pipeline.progress import progress

    store, mirror = open_store(), Mirror(Location.open(url))
    mirror.location.check()
    chosen = _chosen(mirror, name, mirror.location.url, with_keys=with_keys, without=without or [])
    store.check_writable()
    with store.in_use(), _disk_full(store.root):
        moved = receive(store, mirror, chosen, progress, dry_run=dry_run)
    _show(moved, chosen, "pulled", mirror.location.url, dry_run=dry_run, as_json=as_json)


def _chosen(artifacts: Artifacts, name: str, where: object, *, with_keys: bool, without: Sequence[str]) -> Selection:
    from factsmith.artifacts.remote.lineage import with_lineage
    from factsmith.artifacts.remote.mirror import resolve

    places = resolve(artifacts, name, where)
    chosen = with_lineage(artifacts, places, keys=with_keys, without=without)
    sources = {"keys", *(one.partition("/")[0] for one in (*chosen.moved, *chosen.left_out, *chosen.unknown))}
    for kind in without:
        if kind not in sources:
            raise InputError(f"--without {kind} leaves nothing out.", remedy=closest(kind, sources))
    return chosen


@contextmanager
def _disk_full(where: object) -> Iterator[None]:
    """
    Raises:
        InputError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"The disk of {where} is full.", remedy="free some space; the same command then continues from here"
        ) from None


def _show(moved: Sequence[Moved], chosen: Selection, verb: str, url: str, *, dry_run: bool, as_json: bool) -> None:
    done = [one for one in moved if one.state == "moved"]
    files, size = sum(one.files for one in done), sum(one.bytes for one in done)
    if as_json:
        document: dict[str, Any] = {
            "url": url,
            "dry_run": dry_run,
            "artifacts": [asdict(one) for one in moved],
            "left_out": sorted(chosen.left_out),
            "unknown": sorted(chosen.unknown),
            "files": files,
            "bytes": size,
        }
        typer.echo(json.dumps(document))
        return
    states = Counter((one.address.partition("/")[0], one.state) for one in moved)
    for (kind, state), count in states.items():
        typer.echo(f"{count} {kind}: {(f'would be {verb}' if dry_run else verb) if state == 'moved' else state}")
    for kind, count in Counter(address.partition("/")[0] for address in chosen.left_out).items():
        typer.echo(
            f"{count} {kind}: left out, not needed where C0 is" if kind == "keys" else f"{count} {kind}: left out"
        )
    if chosen.unknown:
        typer.echo(f"{len(chosen.unknown)} sources are gone, such as {chosen.unknown[0]}")
    typer.echo(f"{'would move' if dry_run else 'moved'} {files:,} files, {size:,} bytes")
