"""Commands about earlier runs: list them, and compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, check_report_file, check_runs, show, start, write_report
from factsmith.tasks.pipeline.environment import home

__all__ = ["compare", "report", "runs"]


def runs(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="show this run and its parts")] = None,
    experiment: Annotated[str | None, typer.Option(metavar="NAME", help="only runs of this MLflow experiment")] = None,
    limit: Annotated[int, typer.Option(min=1, help="most runs to show; parts of runs do not count")] = 20,
    as_json: AsJson = False,
) -> None:
    """List earlier runs, latest first, or show one run with its cells or trials."""
    start()
    check_runs()
    from factsmith.flows.reporting.runs import described, grouped, runs_table
    from factsmith.tasks.tracking.runs import find_run, past_runs

    found = grouped(past_runs(home(), experiment))
    if run is not None:
        wanted = find_run(home(), run).id
        found = [group for group in found if any(one.id == wanted for _, one in group)]
    shown = found[:limit]
    if as_json:
        typer.echo(json.dumps({"runs": [described(one) for group in shown for _, one in group]}))
        return
    show(runs_table(shown, total=len(found), parts=run is not None))


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run: its id as `factsmith runs` shows it, or `latest`")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="HTML file to write")],
) -> None:
    """Write the report of an earlier run to an HTML file that needs no network.

    Runs, their parts, and sweeps have one. It is the file `report.html` of the run in MLflow.
    """
    start()
    check_runs()
    check_report_file(file)
    write_report(run, file)
    typer.echo(f"Written: {file}")


def compare(
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="two or more runs: ids as `factsmith runs` shows them, or `latest`"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown tables, for papers and reviews")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare runs: settings that differ, scores, and which differences are more than noise.

    The first run is compared with each of the others. Brackets hold 95 % bootstrap intervals: paired if two runs scored
    the same facts, independent otherwise. Batches are resampled if their facts share an edit, and facts otherwise. A
    difference is noise if its interval contains zero.
    Intervals are computed for each metric separately and are not corrected for multiple comparisons.
    """
    names = given or []
    if len(names) < 2:
        raise InputError(
            "A comparison needs two runs.",
            got=" ".join(names) or None,
            expected="ids, or `latest`",
            remedy="`factsmith runs` lists them",
        )
    if markdown and as_json:
        raise InputError("--markdown and --json exclude each other.", remedy="leave one out")
    start()
    check_runs()
    from factsmith.tasks.tracking.runs import find_run

    found = [find_run(home(), name) for name in names]
    repeated = [run.id for place, run in enumerate(found) if run.id in {other.id for other in found[:place]}]
    if repeated:
        raise InputError(f"Run {repeated[0]} is given twice.", got=" ".join(names), expected="different runs")
    from factsmith.flows.reporting.comparison import compare, scored
    from factsmith.flows.reporting.runs import comparison_tables

    comparison = compare([scored(run) for run in found])
    if as_json:
        typer.echo(comparison.model_dump_json())
        return
    tables = comparison_tables(comparison)
    if markdown:
        typer.echo("\n".join(table.markdown() for table in tables))
    else:
        show(*(table.terminal() for table in tables))
