"""``factsmith store``: list artifacts, show where they come from, check them, move them, remove them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.artifacts.store import Store
from factsmith.flows.cli.common import AsJson
from factsmith.flows.cli.common import show as show_tables
from factsmith.flows.cli.store.transfer import pull, push
from factsmith.tasks.planning.home import open_store

__all__ = ["store_app"]

store_app = typer.Typer(help="List, check, move and remove artifacts.", no_args_is_help=True)
store_app.command()(push)
store_app.command()(pull)

DryRun = Annotated[bool, typer.Option("--dry-run", help="only show what would be removed")]


@store_app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the artifacts."""
    from factsmith.flows.reporting.terminal import store_table

    store = open_store()
    found = store.manifests()
    manifests = [manifest for manifest in found.values() if manifest is not None]
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json", exclude={"files", "recipe"}) for one in manifests]))
    else:
        show_tables(store_table(manifests))
        if store.upstream is not None:
            typer.echo(
                f"{len(found):,} artifacts in {store.where}, copies of {len(store.all_paths()):,} in {store.root}"
            )
    for place, manifest in found.items():
        if manifest is None:
            typer.echo(f"{store.where}/artifacts/{place}: the manifest cannot be read", err=True)


@store_app.command("show")
def show(address: Annotated[str, typer.Argument(help="kind/digest or digest, as `store ls` shows it")]) -> None:
    """Print the manifest of an artifact, or of all artifacts of a series."""
    store = open_store()
    manifests = [store.manifest_at(place) for place in store.resolve(address)]
    documents = [manifest.model_dump(mode="json") for manifest in manifests if manifest is not None]
    typer.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=1, ensure_ascii=False))


@store_app.command("verify")
def verify(
    address: Annotated[str | None, typer.Argument(help="what to check; by default all artifacts")] = None,
) -> None:
    """Read every byte again and name the files that have changed since they were written.

    Of a shared store, reads what is there and this machine's copies.
    """
    from factsmith.tasks.pipeline.progress import progress

    store = open_store()
    places = store.places() if address is None else store.resolve(address)
    problems = []
    with progress("verify", len(places)) as advance:
        for place in places:
            problems += _damage(store, place)
            advance(1)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise FactsmithError(
            f"{len(problems)} damaged files in {len(places)} artifacts.",
            remedy="run the flow again: damaged artifacts are set aside and built again",
        )
    typer.echo(f"{len(places)} artifacts, all bytes as they were written")


def _damage(store: Store, place: str) -> list[str]:
    """What is wrong with an artifact, one line for each file."""
    path = store.path(place)
    problems = store.verify(path) if path.is_dir() else []
    if store.upstream is not None:
        from factsmith.artifacts.remote.shared.removal import upstream_of, verify_there

        problems += verify_there(upstream_of(store), place)
    return problems


@store_app.command("gc")
def gc(
    unused_days: Annotated[
        float | None,
        typer.Option("--unused", metavar="DAYS", min=0, help="also remove artifacts that no run has used for DAYS"),
    ] = None,
    copies: Annotated[
        bool, typer.Option("--copies", help="of a shared store, only remove from this machine's folder")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove leftovers: files of killed runs, damaged artifacts that were set aside, old locks.

    No run may be active on this machine at the same time. Of a shared store, what other machines have left behind is
    removed after a day; with --unused, no run may be active on any machine.
    """
    from factsmith.artifacts.removal import alone, leftovers, unused

    store = open_store()
    if copies and store.upstream is None:
        raise InputError("--copies is for a shared store.", got=f"the folder {store.root}", remedy="leave it out")
    if not store.root.is_dir():
        typer.echo(f"nothing to remove: there is no store in {store.root}")
        return
    with alone(store):
        if not copies and store.upstream is not None:
            from factsmith.flows.cli.store.sharing import collect

            collect(store, unused_days, dry_run=dry_run)
        paths = leftovers(store) + [
            store.path(place) for place in ([] if unused_days is None else unused(store, unused_days))
        ]
        _remove(store, paths, dry_run=dry_run)


@store_app.command("rm")
def rm(
    addresses: Annotated[list[str], typer.Argument(help="artifacts or series, as `store ls` shows them")],
    with_dependants: Annotated[
        bool, typer.Option("--dependants", help="also remove everything that was made from them")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="remove only these; artifacts that were made from them remain usable")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove artifacts. A run that needs them builds them again, with the same bytes.

    No run may be active at the same time, of a shared store on any machine. Other machines keep their copies.
    """
    from factsmith.artifacts.removal import alone, dependants

    store = open_store()
    # A wrong address is refused before anything is written.
    given = [place for address in addresses for place in store.resolve(address)]
    with alone(store):
        places = sorted(set(given))
        made_from = dependants(places, store.manifests())
        if with_dependants:
            places += made_from
        elif made_from and not force:
            raise InputError(
                f"{len(made_from)} other artifacts were made from these.",
                got=", ".join(f"{place.split('/')[0]}/{place.split('/')[2][:12]}" for place in made_from[:8])
                + (", ..." if len(made_from) > 8 else ""),
                remedy="--dependants removes them too; --force keeps them",
            )
        if store.upstream is not None:
            from factsmith.flows.cli.store.sharing import remove_places

            remove_places(store, places, dry_run=dry_run)
        _remove(store, [path for place in places if (path := store.path(place)).is_dir()], dry_run=dry_run)


def _remove(store: Store, paths: Sequence[Path], *, dry_run: bool) -> None:
    """Remove ``paths`` and print what they were: artifacts by kind, other files by folder."""
    from factsmith.artifacts.removal import remove, size
    from factsmith.tasks.pipeline.progress import progress

    number: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    one = "artifacts" if store.upstream is None else "copies"
    for path in paths:
        where = path.relative_to(store.root).parts
        what = f"{where[1]} {one}" if where[0] == "artifacts" else where[0]
        number[what] += 1
        freed[what] += size(path)
    if not dry_run:
        with progress("remove", len(paths)) as advance:
            remove(store, paths, advance=advance)
    for what, count in number.items():
        typer.echo(f"{count} {what}, {freed[what]:,} bytes")
    typer.echo(f"{'would free' if dry_run else 'freed'} {freed.total():,} bytes")
