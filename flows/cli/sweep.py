"""The command that runs a grid of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, ReportFile, check_report_file, complete, show, start, write_report
from factsmith.tasks.pipeline.environment import home

__all__ = ["sweep"]

GridArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTINGS]...",
        help="choices and settings; those with several values, separated by commas, vary: method=memit,emmet "
        "method.batch_size=1,16 ...",
    ),
]


def sweep(
    arguments: GridArguments = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, help="most cells to run at once, each in a process of its own (with runtime.engine=ray on a cluster)"
        ),
    ] = 1,
    memory_mb: Annotated[
        int | None,
        typer.Option(
            min=1, help="memory for all cells that run at once, in MiB; fewer run at once if they would need more"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the tables and plots")] = None,
    report_file: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """Run every combination of the given settings, and show the scores in tables and plots as in the papers.

    experiment=NAME runs a prepared sweep (`factsmith conf` lists them); other settings change it. Stages that cells
    share run once. A cell that fails, or whose process is killed, does not stop the others. The same command continues
    an interrupted sweep.
    """
    start()
    from factsmith.flows.sweeps.cells import open_sweep

    check_report_file(report_file)
    opened = open_sweep(arguments or [], jobs=jobs, memory_mb=memory_mb)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder.", remedy="choose another --out")
    from factsmith.flows.sweeps.sweep import cells_flow

    report = complete(cells_flow(opened))
    from factsmith.flows.reporting.sweeps.results import failures, sweep_tables, write_sweep

    write_report(report.mlflow_run_id, report_file)
    written = write_sweep(report, out) if out is not None else []
    written += [report_file] if report_file is not None else []
    if as_json:
        typer.echo(report.model_dump_json())
        return
    show(*(table.terminal() for table in sweep_tables(report)))
    typer.echo("\n".join([*failures(report), *(f"Written: {path}" for path in written)] or [f"Artifacts: {home()}"]))
    typer.echo(f"Sweep {report.mlflow_run_id[:8]}: tables, plots and a run per cell are in MLflow (`factsmith ui`)")
