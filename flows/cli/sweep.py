"""The command that runs a grid of settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, complete, show, start
from factsmith.tasks.pipeline.paths import home

__all__ = ["sweep"]

GridWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[WORDS]...",
        help="choices and settings, several values apart by commas: method=memit,emmet method.batch_size=1,16 ...",
    ),
]


def sweep(
    words: GridWords = None,
    jobs: Annotated[int, typer.Option(min=1, help="cells that may run at once")] = 1,
    memory_mb: Annotated[
        int | None, typer.Option(min=1, help="of all cells that run at once, estimated; fewer run if they need more")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the tables and plots")] = None,
    as_json: AsJson = False,
) -> None:
    """Run every combination of some settings, and put the scores into a paper's tables and plots.

    experiment=NAME runs one that is ready (`factsmith conf` lists them); other words change it. What cells share is
    computed once, a cell that fails does not stop the rest, and the same command goes on after an interruption.
    """
    start()
    from factsmith.flows.cells import open_sweep

    opened = open_sweep(words or [], jobs=jobs, memory_mb=memory_mb)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder.", remedy="choose another --out")
    if prefect_home := os.environ.get("PREFECT_HOME"):
        Path(prefect_home).mkdir(parents=True, exist_ok=True)
    from factsmith.flows.sweep import run_sweep

    report = complete(lambda: run_sweep(opened))
    from factsmith.flows.reporting.sweeps import failures, sheets, write_results

    written = write_results(report, out) if out is not None else []
    if as_json:
        typer.echo(report.model_dump_json())
        return
    show(*(sheet.table() for sheet in sheets(report)))
    typer.echo("\n".join([*failures(report), *(f"Written: {path}" for path in written)] or [f"Artifacts: {home()}"]))
    typer.echo(f"Sweep {report.mlflow_run_id[:8]}: tables, plots and a run a cell are in MLflow (`factsmith ui`)")
