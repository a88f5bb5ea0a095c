"""Commands that keep something running: schedules, and the MLflow UI."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import Arguments, check_runs, preflight, show
from factsmith.tasks.pipeline.environment import home, prepare_command_line, prepare_scheduler

__all__ = ["serve", "ui"]


def serve(
    arguments: Arguments = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FLOW", help="precompute, evaluate or run; may be repeated")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="cron schedule of all flows, instead of their own")] = None,
    interval: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", min=1, max=10**8, help="seconds between runs, instead of a cron schedule"),
    ] = None,
    timezone: Annotated[str, typer.Option(help="time zone of the cron schedule, such as Europe/Paris")] = "UTC",
    name: Annotated[str | None, typer.Option(help="name of the deployments; by default that of the model")] = None,
) -> None:
    """Run flows on a schedule, and when users start them in Prefect's UI, until stopped.

    This needs a Prefect server. precompute runs every night at 2:00, evaluate every hour, and run on request.
    """
    prepare_scheduler()
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.reporting.terminal import deployments_table
    from factsmith.flows.services.schedules import When, check_server, deployments, keep_serving

    settings = compose(arguments or [])
    served = deployments(arguments or [], only or [], When(cron, interval, timezone), name=name or settings.model.name)
    preflight(settings, dataset=any(deployment.flow_name != "precompute" for deployment, _ in served))
    server = check_server()
    show(deployments_table([(f"{one.flow_name}/{one.name}", str(when)) for one, when in served]))
    typer.echo(f"Artifacts: {home()}\nPrefect: {server.removesuffix('/api')}/deployments\nCtrl-C stops.")
    keep_serving([deployment for deployment, _ in served])
    typer.echo("factsmith: stopped; the schedules are paused until they are served again", err=True)


def ui(port: Annotated[int, typer.Option(help="port on 127.0.0.1", min=1, max=65535)] = 5000) -> None:
    """Start the MLflow UI on 127.0.0.1, and print the address of each experiment's page of scores."""
    prepare_command_line()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith("http"):
        typer.echo(f"Runs are logged to {uri}: open it in a browser.")
        return
    check_runs()
    backend = uri or f"sqlite:///{home() / 'mlflow.db'}"
    _check_port(port)
    # MLflow's job workers would be eight more processes that nothing uses.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    options = ["server", "--backend-store-uri", backend, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    from factsmith.flows.services.mlflow_ui import score_pages

    server = f"http://127.0.0.1:{port}"
    pages = score_pages(backend)
    typer.echo("\n".join(f"{experiment}: {server}{page}" for experiment, page in pages.items()) or server)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *options])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # A port that was just closed counts as free.
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"Port {port} of 127.0.0.1 cannot be used.", got=error.strerror, remedy="choose another with --port"
            ) from None
