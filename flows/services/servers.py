"""The servers that `factsmith serve` starts: Prefect's with its UI, and MLflow's UI. They end when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import httpx

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.processes.signs_of_life import living, sign_of_life
from factsmith.artifacts.store import Store
from factsmith.flows.services.mlflow_ui import HOST, check_port, mlflow_command, mlflow_environment, score_page
from factsmith.flows.services.schedules import named_server, use_server
from factsmith.tasks.pipeline.environment import SERVED
from factsmith.tasks.tracking.tracker import connect, open_experiment, tracking_uri

__all__ = ["serving"]

_SECONDS_TO_START = 180.0
_SECONDS_TO_END = 10.0


@contextmanager
def serving(home: Path, experiment: str, port: int, mlflow_port: int) -> Iterator[dict[str, str]]:
    """Start a Prefect server and MLflow's UI, each unless the environment names a server or one is served already.

    Args:
        home: ``FACTSMITH_HOME``. Commands there use the Prefect server while the context is open.
        experiment: the MLflow experiment whose page is shown.
        port: port of the Prefect server.
        mlflow_port: port of MLflow's UI.

    Yields:
        The address of the MLflow page.

    Raises:
        InputError: a port is taken, or a server does not start.
    """
    uri, others = tracking_uri(home), living(home / SERVED) or {}  # those of another `factsmith serve` in this home
    if not named_server() and others.get("api"):
        use_server(others["api"])
    own_prefect, own_mlflow = not named_server(), not (uri.startswith("http") or others.get("mlflow"))
    if own_prefect:
        check_port(port, "--port")
    if own_mlflow:
        check_port(mlflow_port, "--mlflow-port")
    with Store(home).lock("mlflow"):  # Otherwise the UI and the first run would both create the database.
        client = connect(home)
        page = score_page(client, open_experiment(client, home, experiment))
    with ExitStack() as servers:
        served: dict[str, str] = {}
        if own_prefect:
            served["api"] = servers.enter_context(_serve_prefect(home, port))
            use_server(served["api"])
        if own_mlflow:
            served["mlflow"] = servers.enter_context(_serve_mlflow(home, uri, mlflow_port))
        if served and not others:
            sign = servers.enter_context(sign_of_life(home / SERVED, served))
            servers.callback(sign.remove)
        base = uri if uri.startswith("http") else served.get("mlflow") or others["mlflow"]
        yield {"MLflow": base.rstrip("/") + page}


@contextmanager
def _serve_prefect(home: Path, port: int) -> Iterator[str]:
    """A Prefect server with its UI. Yields the address of its API.

    Its database is the one that runs in ``home`` already use, unless the environment names another.
    """
    api = f"http://{HOST}:{port}/api"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        **environment,
        # The UI runs in the browser and asks this address, whatever address it was loaded from.
        "PREFECT_UI_API_URL": api,
    }
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with _serving("Prefect", command, environment, f"{api}/health", home / "logs" / "prefect.log"):
        yield api


@contextmanager
def _serve_mlflow(home: Path, uri: str, port: int) -> Iterator[str]:
    """MLflow's UI. Yields its address."""
    address = f"http://{HOST}:{port}"
    environment = {**os.environ, **mlflow_environment()}
    command, log = ["mlflow", *mlflow_command(uri, port)], home / "logs" / "mlflow.log"
    with _serving("MLflow", command, environment, f"{address}/health", log):
        yield address


@contextmanager
def _serving(name: str, command: list[str], environment: Mapping[str, str], health: str, log: Path) -> Iterator[None]:
    """A server that answers at ``health`` while the context is open. If it ends before, this process is stopped.

    It has a process group of its own, because Ctrl-C must not end it before the schedules are paused.
    """
    child = [sys.executable, "-m", "factsmith.flows.services.child_process", str(os.getpid()), *command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            child, env=dict(environment), stdout=output, stderr=output, process_group=0
        )
    ending = Event()
    try:
        _wait_for(name, process, health, log)
        Thread(target=_stop_with, args=(name, process, ending, log), daemon=True).start()
        yield
    finally:
        ending.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)


def _wait_for(name: str, process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while process.poll() is None and time.monotonic() < end:
        with suppress(httpx.HTTPError):
            if httpx.get(health, timeout=5).is_success:
                return
        time.sleep(0.2)
    raise InputError(
        f"The {name} server did not start.",
        got="no answer" if process.poll() is None else f"exit code {process.returncode}",
        remedy=f"its messages are in {log}",
    )


def _stop_with(name: str, process: subprocess.Popen[bytes], ending: Event, log: Path) -> None:
    process.wait()
    if not ending.is_set():
        print(f"factsmith: the {name} server has ended; its messages are in {log}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
