"""Commands that keep something running: schedules, and the MLflow UI."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

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
    no_server: Annotated[
        bool, typer.Option("--no-server", help="start no server: use the Prefect server that PREFECT_API_URL names")
    ] = False,
    port: Annotated[int, typer.Option(help="port of Prefect's server on 127.0.0.1", min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="port of the MLflow UI on 127.0.0.1", min=1, max=65535)] = 5000,
) -> None:
    """Run flows on a schedule, and when users start them in Prefect's UI, until stopped.

    precompute runs every night at 2:00, evaluate every hour, and run on request. This starts a Prefect server with its
    UI, unless PREFECT_API_URL names one, and the MLflow UI, unless MLFLOW_TRACKING_URI names a server. Both end with
    this command; what they have stored stays. Commands in the same FACTSMITH_HOME use the same Prefect server.
    """
    prepare_scheduler()
    from factsmith.flows.configuration.composition import compose
    from factsmith.flows.reporting.terminal import deployments_table
    from factsmith.flows.services.dead_flow_runs import crash_dead_flow_runs
    from factsmith.flows.services.schedules import When, check_server, deployments, keep_serving
    from factsmith.flows.services.servers import serving

    settings = compose(arguments or [])
    served = deployments(arguments or [], only or [], When(cron, interval, timezone), name=name or settings.model.name)
    preflight(settings, dataset=any(deployment.flow_name != "precompute" for deployment, _ in served))
    with ExitStack() as servers:
        started: dict[str, str] = {}
        if not no_server:
            started = servers.enter_context(serving(home(), settings.tracking.experiment, port, mlflow_port))
        api = check_server()
        crash_dead_flow_runs(home())
        show(deployments_table([(f"{one.flow_name}/{one.name}", str(when)) for one, when in served]))
        pages = {"Artifacts": str(home()), "Prefect": f"{api.removesuffix('/api')}/deployments", **started}
        typer.echo("\n".join([*(f"{name}: {place}" for name, place in pages.items()), "Ctrl-C stops."]))
        sys.stdout.flush()
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
    from factsmith.flows.services.mlflow_ui import check_port, mlflow_command, mlflow_environment, score_pages
    from factsmith.tasks.tracking.tracker import tracking_uri

    backend = tracking_uri(home())
    check_port(port, "--port")
    os.environ.update(mlflow_environment())
    server = f"http://127.0.0.1:{port}"
    pages = score_pages(backend)
    typer.echo("\n".join(f"{experiment}: {server}{page}" for experiment, page in pages.items()) or server)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *mlflow_command(backend, port)])
