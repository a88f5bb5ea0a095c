"""``factsmith store``: look at the artifacts, check them, remove some."""

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
from factsmith.tasks.pipeline.paths import home

__all__ = ["store_app"]

store_app = typer.Typer(help="Look at the artifact store, and clear it.", no_args_is_help=True)

DryRun = Annotated[bool, typer.Option("--dry-run", help="only tell what would be removed")]


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
        typer.echo(f"{path}: no manifest that can be read", err=True)


@store_app.command("show")
def show(address: Annotated[str, typer.Argument(help="kind/digest or digest, as `store ls` shows it")]) -> None:
    """Print the manifest of an artifact, or of all artifacts of a series."""
    from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest

    manifests = [Manifest.load(path / MANIFEST_NAME).model_dump(mode="json") for path in Store(home()).resolve(address)]
    typer.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, indent=1, ensure_ascii=False))


@store_app.command("verify")
def verify(
    address: Annotated[str | None, typer.Argument(help="what to read; everything if it is left out")] = None,
) -> None:
    """Read every byte again and name what is not as it was written."""
    from factsmith.tasks.pipeline.progress import work

    store = Store(home())
    paths = store.all_paths() if address is None else store.resolve(address)
    problems = []
    with work("verify", len(paths)) as advance:
        for path in paths:
            problems += store.verify(path)
            advance(1)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise FactsmithError(
            f"{len(problems)} damaged files in {len(paths)} artifacts.",
            remedy="run the flow again: what is damaged is set aside and built anew",
        )
    typer.echo(f"{len(paths)} artifacts, every byte as it was written")


@store_app.command("gc")
def gc(
    unused_days: Annotated[
        float | None,
        typer.Option("--unused", metavar="DAYS", min=0, help="also remove artifacts that no run used for so long"),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Remove what nothing needs: what killed runs left, damaged artifacts that were set aside, old locks.

    No run may be going on.
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
        bool, typer.Option("--dependants", help="remove what was made from them too, and what was made from that")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="leave what was made from them; it stays as good as it is")] = (
        False
    ),
    dry_run: DryRun = False,
) -> None:
    """Remove artifacts. A run that needs them builds them again, to the same bytes.

    No run may be going on.
    """
    from factsmith.artifacts.removal import alone, dependants

    store = Store(home())
    given = [path for address in addresses for path in store.resolve(address)]  # before anything is written
    with alone(store):
        paths = sorted(set(given))
        made_from = dependants(store, paths)
        if with_dependants:
            paths += made_from
        elif made_from and not force:
            raise InputError(
                f"{len(made_from)} artifacts were made from what is to be removed.",
                got=", ".join(f"{path.parent.parent.name}/{path.name[:12]}" for path in made_from[:8])
                + (", ..." if len(made_from) > 8 else ""),
                remedy="--dependants removes them too; --force leaves them as they are",
            )
        _remove(store, paths, dry_run=dry_run)


def _remove(store: Store, paths: Sequence[Path], *, dry_run: bool) -> None:
    """Remove ``paths`` and say what they were: artifacts by their kind, the rest by where it lay."""
    from factsmith.artifacts.removal import remove, size
    from factsmith.tasks.pipeline.progress import work

    number: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    for path in paths:
        where = path.relative_to(store.root).parts
        what = f"{where[1]} artifacts" if where[0] == "artifacts" else where[0]
        number[what] += 1
        freed[what] += size(path)
    if not dry_run:
        with work("remove", len(paths)) as advance:
            remove(store, paths, advance=advance)
    for what, count in number.items():
        typer.echo(f"{count} {what}, {freed[what]:,} bytes")
    typer.echo(f"{'would free' if dry_run else 'freed'} {freed.total():,} bytes")
