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
from factsmith.tasks.pipeline.environment import home

__all__ = ["store_app"]

store_app = typer.Typer(help="List, check, move and remove artifacts.", no_args_is_help=True)
store_app.command()(push)
store_app.command()(pull)

DryRun = Annotated[bool, typer.Option("--dry-run", help="only show what would be removed")]


@store_app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the artifacts."""
    from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
    from factsmith.flows.reporting.terminal import store_table

    store = Store(home())
    manifests, damaged = [], []
    for path in store.all_paths():
        try:
            manifests.append(Manifest.load(path / MANIFEST_NAME))
        except FactsmithError:
            damaged.append(path)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json", exclude={"files", "recipe"}) for one in manifests]))
    else:
        show_tables(store_table(manifests))
    for path in damaged:
        typer.echo(f"{path}: the manifest cannot be read", err=True)


@store_app.command("show")
def show(address: Annotated[str, typer.Argument(help="kind/digest or digest, as `store ls` shows it")]) -> None:
    """Print the manifest of an artifact, or of all artifacts of a series."""
    from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest

    manifests = [Manifest.load(path / MANIFEST_NAME).model_dump(mode="json") for path in Store(home()).resolve(address)]
    typer.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, indent=1, ensure_ascii=False))


@store_app.command("verify")
def verify(
    address: Annotated[str | None, typer.Argument(help="what to check; by default all artifacts")] = None,
) -> None:
    """Read every byte again and name the files that have changed since they were written."""
    from factsmith.tasks.pipeline.progress import progress

    store = Store(home())
    paths = store.all_paths() if address is None else store.resolve(address)
    problems = []
    with progress("verify", len(paths)) as advance:
        for path in paths:
            problems += store.verify(path)
            advance(1)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise FactsmithError(
            f"{len(problems)} damaged files in {len(paths)} artifacts.",
            remedy="run the flow again: damaged artifacts are set aside and built again",
        )
    typer.echo(f"{len(paths)} artifacts, all bytes as they were written")


@store_app.command("gc")
def gc(
    unused_days: Annotated[
        float | None,
        typer.Option("--unused", metavar="DAYS", min=0, help="also remove artifacts that no run has used for DAYS"),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Remove leftovers: files of killed runs, damaged artifacts that were set aside, old locks.

    No run may be active at the same time.
    """
    from factsmith.artifacts.removal import alone, leftovers, unused

    store = Store(home())
    if not store.root.is_dir():
        typer.echo(f"nothing to remove: there is no store in {store.root}")
        return
    with alone(store):
        paths = leftovers(store) + ([] if unused_days is None else unused(store, unused_days))
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

    No run may be active at the same time.
    """
    from factsmith.artifacts.removal import alone, dependants

    store = Store(home())
    # A wrong address is refused before anything is written.
    given = [path for address in addresses for path in store.resolve(address)]
    with alone(store):
        paths = sorted(set(given))
        made_from = dependants(store, paths)
        if with_dependants:
            paths += made_from
        elif made_from and not force:
            raise InputError(
                f"{len(made_from)} other artifacts were made from these.",
                got=", ".join(f"{path.parent.parent.name}/{path.name[:12]}" for path in made_from[:8])
                + (", ..." if len(made_from) > 8 else ""),
                remedy="--dependants removes them too; --force keeps them",
            )
        _remove(store, paths, dry_run=dry_run)


def _remove(store: Store, paths: Sequence[Path], *, dry_run: bool) -> None:
    """Remove ``paths`` and print what they were: artifacts by kind, other files by folder."""
    from factsmith.artifacts.removal import remove, size
    from factsmith.tasks.pipeline.progress import progress

    number: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    for path in paths:
        where = path.relative_to(store.root).parts
        what = f"{where[1]} artifacts" if where[0] == "artifacts" else where[0]
        number[what] += 1
        freed[what] += size(path)
    if not dry_run:
        with progress("remove", len(paths)) as advance:
            remove(store, paths, advance=advance)
    for what, count in number.items():
        typer.echo(f"{count} {what}, {freed[what]:,} bytes")
    typer.echo(f"{'would free' if dry_run else 'freed'} {freed.total():,} bytes")
