"""Commands that keep something running: schedules, and the MLflow UI."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import Words, check_runs, preflight, show
from factsmith.tasks.pipeline.paths import embedded_services, home, scheduled_services

__all__ = ["serve", "ui"]


def serve(
    words: Words = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FLOW", help="precompute, evaluate or run; repeatable")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="when to run, instead of each flow's own time")] = None,
    interval: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=1, max=10**8, help="between runs, instead of a cron")
    ] = None,
    timezone: Annotated[str, typer.Option(help="of the cron, such as Europe/Paris")] = "UTC",
    name: Annotated[str | None, typer.Option(help="of the deployments; the model's if left out")] = None,
) -> None:
    """Run flows on a schedule, and those that people start in Prefect's UI, until stopped.

    Needs a Prefect server. precompute runs every night at 2:00, evaluate every hour, run when it is asked for.
    """
    scheduled_services()
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.reporting.terminal import deployments_table
    from factsmith.flows.services.schedules import When, check_server, deployments, keep_serving

    settings = compose(words or [])
    served = deployments(words or [], only or [], When(cron, interval, timezone), name=name or settings.model.name)
    preflight(settings, dataset=any(deployment.flow_name != "precompute" for deployment, _ in served))
    server = check_server()
    show(deployments_table([(f"{one.flow_name}/{one.name}", str(when)) for one, when in served]))
    typer.echo(f"Artifacts: {home()}\nPrefect: {server.removesuffix('/api')}/deployments\nCtrl-C stops.")
    keep_serving([deployment for deployment, _ in served])
    typer.echo("factsmith: stopped, and the schedules are paused until they are served again", err=True)


def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1", min=1, max=65535)] = 5000) -> None:
    """Open the MLflow UI on this machine alone; prints where each experiment's runs are shown with their scores."""
    embedded_services()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith("http"):
        typer.echo(f"Runs are logged to {uri}: open it in a browser.")
        return
    check_runs()
    backend = uri or f"sqlite:///{home() / 'mlflow.db'}"
    _check_port(port)
    # MLflow's own job workers would be eight more processes, for nothing we use.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["server", "--backend-store-uri", backend, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    from factsmith.flows.services.mlflow_ui import runs_pages

    server = f"http://127.0.0.1:{port}"
    typer.echo("\n".join(f"{experiment}: {server}{page}" for experiment, page in runs_pages(backend).items()) or server)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"Port {port} of 127.0.0.1 cannot be used.", got=error.strerror, remedy="choose another with --port"
            ) from None
