"""Commands that look back at runs: a list of them, and some side by side."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, check_runs, show, start
from factsmith.tasks.pipeline.paths import home

__all__ = ["compare", "runs"]


def runs(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="show this one and the runs it is made of")] = None,
    experiment: Annotated[str | None, typer.Option(metavar="NAME", help="of MLflow; every one if left out")] = None,
    limit: Annotated[int, typer.Option(min=1, help="runs to show, besides those below them")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs there have been, the latest first, or one and the cells or trials that it is made of."""
    start()
    check_runs()
    from factsmith.flows.reporting.runs import described, listed, runs_table
    from factsmith.tasks.tracking.runs import find_run, past_runs

    found = listed(past_runs(home(), experiment))
    if run is not None:
        wanted = find_run(home(), run).id
        found = [family for family in found if any(one.id == wanted for _, one in family)]
    shown = found[:limit]
    if as_json:
        typer.echo(json.dumps({"runs": [described(one) for family in shown for _, one in family]}))
        return
    show(runs_table(shown, of=len(found), parts=run is not None))


def compare(
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="two or more: ids as `factsmith runs` shows them, or `latest`"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown tables, for papers and reviews")] = False,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: settings that differ, scores, and whether their differences are more than noise.

    The others are compared with the first. Brackets hold 95 % bootstrap intervals over facts: fact by fact where two
    runs scored the same facts, independently otherwise. A difference is noise if its interval holds zero. Intervals are
    of each metric by itself, not corrected for there being many.
    """
    words = given or []
    if len(words) < 2:
        raise InputError(
            "It takes two runs to compare.",
            got=" ".join(words) or None,
            expected="ids, or `latest`",
            remedy="`factsmith runs` lists them",
        )
    if markdown and as_json:
        raise InputError("--markdown and --json cannot both be had.", remedy="leave one out")
    start()
    check_runs()
    from factsmith.tasks.tracking.runs import find_run

    found = [find_run(home(), word) for word in words]
    twice = [run.id for place, run in enumerate(found) if run.id in {other.id for other in found[:place]}]
    if twice:
        raise InputError(f"Run {twice[0]} is given twice.", got=" ".join(words), expected="runs that differ")
    from factsmith.flows.reporting.comparison import compare, scored
    from factsmith.flows.reporting.runs import comparison_sheets

    comparison = compare([scored(run) for run in found])
    if as_json:
        typer.echo(comparison.model_dump_json())
        return
    sheets = comparison_sheets(comparison)
    if markdown:
        typer.echo("\n".join(sheet.markdown() for sheet in sheets))
    else:
        show(*(sheet.table() for sheet in sheets))
