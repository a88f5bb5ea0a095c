"""Shared by the commands: their arguments, the checks before anything slow starts, and the display of a report."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.environment import home, prepare_command_line

if TYPE_CHECKING:
    from factsmith.flows.reporting.reports import Report
    from factsmith.tasks.planning.run import Run
    from factsmith.tasks.planning.settings import Settings
    from factsmith.tasks.tracking.runs import PastRun

__all__ = [
    "Arguments",
    "AsJson",
    "check_runs",
    "complete",
    "compose_arguments",
    "make_prefect_home",
    "preflight",
    "show",
    "show_report",
    "start",
    "start_flow",
]

T = TypeVar("T")

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SETTINGS]...", help="choices and settings: model=cf-gpt2 method.batch_size=64 ..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else on stdout")]


class _Once(logging.Filter):
    """Says everything once. A flow reads its input again after the command has checked it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


def start() -> None:
    """Set the environment and the log messages of a command, before anything slow is imported."""
    prepare_command_line()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def start_flow() -> None:
    """Prepare a command that runs a flow. The Prefect server that it needs starts while the command imports its own."""
    start()
    from factsmith.flows.services.temporary_server import prepare_temporary_server

    prepare_temporary_server(home())


def compose_arguments(arguments: list[str] | None, **options: Any) -> Settings:
    """Prepare the command, and compose the settings of its run."""
    start()
    from factsmith.flows.configuration.composition import compose

    return compose(arguments or [], **options)


def check_runs() -> None:
    """Check that a run has been logged.

    Raises:
        InputError: none has.
    """
    from factsmith.tasks.tracking.tracker import DATABASE

    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home() / DATABASE).is_file():
        raise InputError(f"There are no runs in {home()} yet.", remedy="start with `factsmith run`")


def preflight(
    settings: Settings, *, dataset: bool, editing: bool = True, out: Path | None = None, past: PastRun | None = None
) -> Run:
    """Check the user's input before Prefect starts and anything is written."""
    from factsmith.tasks.planning.preflight import check_input
    from factsmith.tasks.planning.run import Run

    run = Run(settings, Store(home()))
    try:
        check_input(run, dataset=dataset, editing=editing, out=out, past=past)
        make_prefect_home()
    except OSError as error:  # So far only the user's paths were used: a name may be too long, permission missing, ...
        raise InputError(f"{error.filename or 'A file'} cannot be used.", got=error.strerror) from None
    from factsmith.flows.services.temporary_server import release_temporary_server

    release_temporary_server()
    return run


def make_prefect_home() -> None:
    """Create the folder of the temporary Prefect server."""
    if prefect_home := os.environ.get("PREFECT_HOME"):
        Path(prefect_home).mkdir(parents=True, exist_ok=True)


def complete(flow: Callable[[], T]) -> T:
    """Run ``flow`` with a Prefect server.

    Raises:
        InputError: the server at ``PREFECT_API_URL`` does not answer.
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    from factsmith.flows.services import temporary_server

    _prepare_mlflow()
    # Stopping the heartbeat costs a second per flow, and nothing watches the heartbeat of a command.
    settings: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    if address := temporary_server.server_address(home()):
        settings[PREFECT_API_URL] = address
        if address != temporary_server.served_address(home()):
            settings[PREFECT_LOGGING_TO_API_ENABLED] = False  # It has no page.
    try:
        with temporary_settings(settings):
            from factsmith.flows.services.dead_flow_runs import crash_dead_flow_runs

            crash_dead_flow_runs(home())
            return flow()
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        raise InputError(
            "Prefect's server does not answer.",
            got=f"PREFECT_API_URL={os.environ.get('PREFECT_API_URL')}",
            remedy="start the server, or unset PREFECT_API_URL to use a temporary one",
        ) from None


def _prepare_mlflow() -> None:
    """Import MLflow, and create its tables if there are none, while the Prefect server starts."""
    from factsmith.tasks.tracking.tracker import connect

    store = Store(home())
    with suppress(Exception), store.lock("mlflow"):  # The run itself says what is wrong with MLflow.
        connect(store.root)


def show_report(flow: Callable[[], Report], settings: Settings, as_json: bool, out: Path | None = None) -> None:
    """Run ``flow`` and show its report."""
    report = complete(flow)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.reporting.curves import COLLAPSE, collapse
    from factsmith.flows.reporting.reports import PrecomputeReport
    from factsmith.flows.reporting.terminal import conditioning_table, scores_table, stages_table, trajectory_table

    if report.metrics:
        show(scores_table(report, settings))
    if report.trajectory:
        show(trajectory_table(report.trajectory, settings))
        if (edits := collapse(report.trajectory)) is not None:
            typer.echo(
                f"Collapsed: after {edits:,} edits, the perplexity of held-out text is at least {COLLAPSE:g} times its "
                "initial value."
            )
    if isinstance(report, PrecomputeReport):
        show(conditioning_table(report.layers))
    if report.answers:
        from factsmith.flows.reporting.terminal import answer_lines, answers_table

        show(answers_table(report.answers))
        typer.echo("\n".join(answer_lines(report.answers)))
    show(stages_table(report.stages))
    if settings.finds_tokens and report.dynamic_multiplier is not None:
        typer.echo(f"corpus.dynamic_multiplier=auto: {report.dynamic_multiplier:g}")
    if out is not None:
        typer.echo(f"Edited model: {out}")
    command = "factsmith" if shutil.which("factsmith") else sys.argv[0]
    typer.echo(f"Run {report.mlflow_run_id[:8]}. Compare runs in the MLflow UI: {command} ui")


def show(*tables: Any) -> None:
    """Print tables. Markup is off, because names may contain what Rich would read as markup."""
    from rich.console import Console

    Console(markup=False, emoji=False).print(*tables, sep="\n")
