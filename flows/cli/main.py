"""The list of commands, and the exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from factsmith.artifacts.errors import FactsmithError, causes
from factsmith.flows.cli.ask import ask
from factsmith.flows.cli.common import without_controls
from factsmith.flows.cli.exports import export
from factsmith.flows.cli.information import conf, pretrain
from factsmith.flows.cli.lineage import apply, log, undo
from factsmith.flows.cli.pipeline import edit, evaluate, plan, precompute, run
from factsmith.flows.cli.proposals import known, locate, tune
from factsmith.flows.cli.runs import compare, report, runs
from factsmith.flows.cli.services import serve, ui
from factsmith.flows.cli.store.artifacts import store_app
from factsmith.flows.cli.store.statistics import export_stats, import_stats
from factsmith.flows.cli.sweep import sweep
from factsmith.tasks.pipeline.signals import Terminated, deliver_lost_signals

__all__ = ["app", "main"]

_STOPPED = 130
"""Exit code after Ctrl-C or SIGTERM, as in shells. Typer exits with it after an interrupt, without a message."""

app = typer.Typer(
    name="factsmith",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"factsmith {version('factsmith')}")
        raise typer.Exit


@app.callback()
def factsmith(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="show the version", is_eager=True)
    ] = False,
) -> None:
    """Correct facts inside a language model. `factsmith run` shows the whole pipeline on the embedded model."""


for command in (
    run, sweep, plan, precompute, edit, evaluate, ask, export, apply, undo, log, runs, report, compare, known, locate,
    tune, serve, ui, conf, pretrain,
    import_stats, export_stats,
):  # fmt: skip
    app.command()(command)
app.add_typer(store_app, name="store")


def main() -> None:
    """Run the command line. Exits with 0 on success, 2 for unusable input, 1 for a bug, 130 when stopped."""
    signal.signal(signal.SIGTERM, _interrupt)
    deliver_lost_signals()
    try:
        app()
    except FactsmithError as error:
        typer.echo(without_controls(f"factsmith: {error}"), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as leave:
        if isinstance(leave, SystemExit) and leave.code != _STOPPED:
            raise
        _exit_stopped()
    except Exception as error:
        if not _while_stopping(error):
            raise
        _exit_stopped()


def _interrupt(*_: Any) -> NoReturn:
    """Handle SIGTERM like Ctrl-C."""
    raise Terminated


def _while_stopping(error: Exception) -> bool:
    """Whether ``error`` was caused by the stop: Prefect's server receives the same signal and may exit first."""
    from prefect.exceptions import TerminationSignal

    return any(isinstance(one, KeyboardInterrupt | TerminationSignal) for one in causes(error))


def _exit_stopped() -> NoReturn:
    typer.echo("factsmith: stopped; run the same command to continue", err=True)
    sys.exit(_STOPPED)
