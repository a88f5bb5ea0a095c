"""Schedules on a real Prefect server: runs start by themselves, and the second one is cached."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.services import servers
from factsmith.flows.services.schedules import CRONS, When, check_server, deployments
from tests.conftest import ROOT
from tests.runs import contents, tiny_arguments
from tests.servers import clean_environment, free_ports, started, until

STAGES = {"model", "tokens", "keys", "covariance", "factor", "contexts", "values", "edit", "evaluation"}


@dataclass
class Server:
    """A Prefect server, and the environment of those who use it: nothing of this session's own Prefect."""

    url: str
    environment: dict[str, str]

    def post(self, path: str, **content: Any) -> Any:
        answer = httpx.post(f"{self.url}/{path}", json=content, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def deployments(self) -> dict[str, dict[str, Any]]:
        """By their addresses."""
        flows = {flow["id"]: flow["name"] for flow in self.post("flows/filter")}
        return {f"{flows[one['flow_id']]}/{one['name']}": one for one in self.post("deployments/filter")}

    def prefect(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT, env=self.environment, check=False, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/api"
    environment = clean_environment(
        PREFECT_HOME=str(folder),
        PREFECT_API_URL=url,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_RUNNER_POLL_FREQUENCY="1",
        DO_NOT_TRACK="true",
        OMP_NUM_THREADS="1",
    )
    arguments = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with started(arguments, folder / "log", env=environment) as process:
        until(lambda: httpx.get(f"{url}/health").json(), process)
        yield Server(url, environment)


def test_a_schedule_fires_and_its_second_run_finds_everything_there(server: Server, gpt2_folder: Path, tmp_path: Path):
    shutil.copytree(gpt2_folder, tmp_path / "model")
    given = tiny_arguments(Path("model"), "method.ridge=auto")
    environment = server.environment | {"FACTSMITH_HOME": "home"}  # relative, as the model's path
    arguments = ["factsmith.flows.cli", "serve", *given, "--only", "evaluate", "--interval", "5", "--name", "tiny"]

    def finished(count: int) -> list[dict[str, Any]]:
        state = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}
        runs = server.post("flow_runs/filter", flow_runs={"state": state}, sort="START_TIME_ASC")
        return runs if len(runs) >= count else []

    def states(run: dict[str, Any]) -> dict[str, str]:
        tasks = server.post("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        found = {task["name"].rpartition("-")[0]: task["state_name"] for task in tasks}
        return found if set(found) == STAGES and not {"Running", "Pending"} & set(found.values()) else {}

    with started(arguments, tmp_path / "log", cwd=tmp_path, env=environment) as serving:
        first = until(lambda: finished(1), serving)[0]
        made = contents(Store(tmp_path / "home"))
        assert len(made) > len(STAGES)
        second = until(lambda: finished(2), serving)[1]
        for run in (first, second):
            assert run["auto_scheduled"]
            assert run["state_type"] == "COMPLETED"
        assert set(until(lambda: states(first), serving).values()) == {"Completed"}
        assert set(until(lambda: states(second), serving).values()) == {"Cached"}
        assert contents(Store(tmp_path / "home")) == made

        of_the_first = {"flow_run_id": {"any_": [first["id"]]}}
        logs = until(lambda: server.post("logs/filter", logs=of_the_first), serving)
        assert any(log["name"].startswith("factsmith.") and "ridge" in log["message"] for log in logs)

        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "evaluate/tiny" in log
    assert "paused" in log
    assert "Traceback" not in log
    assert server.deployments()["evaluate/tiny"]["paused"]
    left = {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}
    assert not server.post("flow_runs/filter", flow_runs={"state": left})

    client = MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("factsmith")
    assert experiment is not None
    parents = [
        run
        for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        if "mlflow.parentRunId" not in run.data.tags
    ]
    assert [run.info.status for run in parents[:2]] == ["FINISHED"] * 2
    scores = [{name: value for name, value in run.data.metrics.items() if "/S" in name} for run in parents[:2]]
    assert scores[0]
    assert scores[0] == scores[1]


def test_serve_alone_is_enough(server: Server, gpt2_folder: Path, tmp_path: Path):
    """It starts both servers; a command in the same home uses the one of Prefect; all end with it."""
    prefect, mlflow = free_ports(2)
    home = tmp_path / "home"
    unset = ("PREFECT_API_URL", "PREFECT_HOME")
    environment = {name: value for name, value in server.environment.items() if name not in unset}
    environment |= {"FACTSMITH_HOME": str(home)}
    ports = ["--port", str(prefect), "--mlflow-port", str(mlflow)]
    given = tiny_arguments(gpt2_folder)
    arguments = ["factsmith.flows.cli", "serve", *given, "--only", "run", "--interval", "600", "--name", "tiny", *ports]
    with started(arguments, tmp_path / "log", env=environment) as serving:
        api = f"http://127.0.0.1:{prefect}/api"
        own = Server(api, environment)
        until(lambda: "Ctrl-C stops" in (tmp_path / "log").read_text(), serving)
        log = (tmp_path / "log").read_text()
        assert f"Prefect: http://127.0.0.1:{prefect}/deployments" in log
        assert f"MLflow: http://127.0.0.1:{mlflow}/#/experiments/" in log
        # The UI runs in the browser: it is told where to ask.
        assert httpx.get(f"http://127.0.0.1:{prefect}/ui-settings").json()["api_url"] == api
        assert httpx.get(f"http://127.0.0.1:{mlflow}/health").is_success

        command = [sys.executable, "-m", "factsmith.flows.cli", "precompute", "--json", *given]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
        of_the_command = json.loads(done.stdout)["run_id"]
        found = httpx.get(f"{api}/flow_runs/{of_the_command}").json()
        assert found["name"].startswith("precompute · memit · local")
        assert found["state_name"] == "Completed"
        made = own.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [of_the_command]}})
        assert any(f"http://127.0.0.1:{mlflow}/#/experiments/" in str(one["data"]) for one in made)

        serving.send_signal(signal.SIGTERM)
        assert serving.wait(90) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not (home / "served.json").exists()
    for port in (prefect, mlflow):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("option", ["--port", "--mlflow-port"])
def test_a_port_of_serve_that_is_taken(refused, home, monkeypatch, option):
    other = "--mlflow-port" if option == "--port" else "--port"
    with socket.socket() as taken, temporary_settings({PREFECT_API_URL: None}):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(servers, "_serving", lambda *_: pytest.fail("a server was started"))
        message = refused("serve", option, port, other, str(free_ports(1)[0]))
        assert f"Port {port} of 127.0.0.1 cannot be used" in message
        assert f"choose another with {option}" in message


def test_prefect_yaml_deploys_three_flows(server: Server):
    server.prefect("work-pool", "create", "local", "--type", "process")
    server.prefect("deploy", "--all")
    deployed = {address: one for address, one in server.deployments().items() if one["work_pool_name"] == "local"}
    assert {address.partition("/")[0] for address in deployed} == set(CRONS)
    for address, one in deployed.items():
        flow = address.partition("/")[0]
        assert [schedule["schedule"]["cron"] for schedule in one["schedules"]] == [
            cron for cron in [CRONS[flow]] if cron
        ]
        assert one["entrypoint"] == f"factsmith.flows.{flow}.{flow}"

    # What its form does not allow is refused before a run begins.
    path = f"{server.url}/deployments/{deployed['precompute/embedded']['id']}/create_flow_run"
    for settings, message in [
        ({"method": "memmit"}, "memmit"),
        ({"changes": {"method": {"slack": -1}}}, "minimum of 0"),
        ({"changes": {"method": {"slak": 1}}}, "slak"),
    ]:
        answer = httpx.post(path, json={"parameters": {"settings": settings}}, timeout=60)
        assert answer.status_code == 409
        assert message in answer.text
    assert httpx.post(path, json={"parameters": {"settings": {"method": "emmet"}}}, timeout=60).status_code == 201


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (When(cron="at noon"), "at noon"),
        (When(cron="0 2 * * *", timezone="Atlantis/Poseidonis"), "Atlantis"),
        (When(cron="0 2 * * *", interval=5), "not both"),
        (When(interval=0), "greater than 0"),
    ],
)
def test_a_time_that_is_none(when, message):
    with pytest.raises(InputError) as caught:
        deployments([], [], when, name="tiny")
    assert message in str(caught.value)


def test_a_flow_that_is_not_served():
    with pytest.raises(InputError, match="did you mean 'evaluate'"):
        deployments([], ["evalute"], When(), name="tiny")


def test_each_flow_has_its_own_time_unless_one_is_given():
    def crons(when: When) -> dict[str, list[str]]:
        made = deployments([], [], when, name="tiny")
        return {one.flow_name: [schedule.schedule.cron for schedule in one.schedules or []] for one, _ in made}

    assert crons(When()) == {flow: [cron] if cron else [] for flow, cron in CRONS.items()}
    assert crons(When(cron="30 4 * * 1")) == {flow: ["30 4 * * 1"] for flow in CRONS}


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/api"])
def test_a_server_that_is_not_there(url):
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(InputError, match="prefect server start"):
        check_server()
