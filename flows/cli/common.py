"""What the commands share: their words, looking at the input before anything heavy starts, and showing a report."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.paths import embedded_services, home

if TYPE_CHECKING:
    from factsmith.flows.reporting.reports import Report
    from factsmith.tasks.pipeline.workspace import Bench
    from factsmith.tasks.planning.settings import Settings
    from factsmith.tasks.tracking.runs import PastRun

__all__ = ["AsJson", "Words", "check_runs", "complete", "compose_words", "preflight", "show", "show_report", "start"]

# What a command needs is imported in it: most of it is heavy, and none of it may load before ``embedded_services``.

T = TypeVar("T")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORDS]...", help="choices and settings: model=cf-gpt2 method.batch_size=64 ..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else on stdout")]


def start() -> None:
    """Settings and logging of a command; before anything heavy is imported."""
    embedded_services()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)


def compose_words(words: list[str] | None, **options: Any) -> Settings:
    """Start, and compose the settings of a run."""
    start()
    from factsmith.flows.configuration.composition import compose

    return compose(words or [], **options)


def check_runs() -> None:
    """
    Raises:
        InputError: no run has been logged yet.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home() / "mlflow.db").is_file():
        raise InputError(f"There are no runs in {home()} yet.", remedy="start with `factsmith run`")


def preflight(
    settings: Settings, *, dataset: bool, editing: bool = True, out: Path | None = None, run: PastRun | None = None
) -> Bench:
    """Look at the user's input before Prefect starts and anything is written, then make the folders it needs."""
    from factsmith.tasks.pipeline.workspace import Bench
    from factsmith.tasks.planning.preflight import check_input

    bench = Bench(settings, Store(home()))
    try:
        check_input(bench, dataset=dataset, editing=editing, out=out, run=run)
        if prefect_home := os.environ.get("PREFECT_HOME"):
            Path(prefect_home).mkdir(parents=True, exist_ok=True)
    except OSError as error:  # so far only what the user named was touched: too long a name, no permission, ...
        raise InputError(f"{error.filename or 'A file'} cannot be used.", got=error.strerror) from None
    return bench


def complete(flow: Callable[[], T]) -> T:
    """What ``flow`` gives back, or a clear word on a server that does not answer."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from factsmith.flows.services.temporary_server import start_temporary_server

    # Nobody watches a run at the command line by its heartbeat, and stopping it costs a second a flow.
    try:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            start_temporary_server()
            return flow()
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        raise InputError(
            "Prefect's server does not answer.",
            got=f"PREFECT_API_URL={os.environ.get('PREFECT_API_URL')}",
            remedy="start the server, or unset PREFECT_API_URL to have one started for the run",
        ) from None


def show_report(flow: Callable[[], Report], settings: Settings, as_json: bool, out: Path | None = None) -> None:
    """Run ``flow`` and show what became of it."""
    report = complete(flow)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.reporting.curves import COLLAPSE, collapse
    from factsmith.flows.reporting.reports import PreparationReport
    from factsmith.flows.reporting.terminal import conditioning_table, course_table, scores_table, stages_table

    if report.metrics:
        show(scores_table(report, settings))
    if report.course:
        show(course_table(report.course, settings))
        if (edits := collapse(report.course)) is not None:
            typer.echo(f"Collapsed: after {edits:,} edits text is {COLLAPSE:g} times as perplexing as before them.")
    if isinstance(report, PreparationReport):
        show(conditioning_table(report.layers))
    show(stages_table(report.stages))
    if settings.finds_tokens and report.dynamic_multiplier is not None:
        typer.echo(f"corpus.dynamic_multiplier=auto: {report.dynamic_multiplier:g}")
    if out is not None:
        typer.echo(f"Edited model: {out}")
    command = "factsmith" if shutil.which("factsmith") else sys.argv[0]
    typer.echo(f"Run {report.mlflow_run_id[:8]}. Compare runs in the MLflow UI: {command} ui")


def show(*tables: Any) -> None:
    """Print tables. Words in them stand as they are: a name may hold what Rich would take for markup."""
    from rich.console import Console

    Console(markup=False, emoji=False).print(*tables, sep="\n")
