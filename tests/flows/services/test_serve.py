"""``factsmith serve`` alone is enough: it starts both servers, its schedule fires, and all of it ends with it."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import expect

from factsmith.artifacts.processes.signs_of_life import living, sign_of_life
from factsmith.artifacts.store import Store
from factsmith.flows.services import servers
from factsmith.tasks.evaluation.metrics.counterfact import FAMILY
from factsmith.tasks.pipeline.environment import SERVED
from tests.browser import installed_browser, lacking, new_page
from tests.runs import contents, tiny_arguments
from tests.servers import clean_environment, free_ports, started, until

STAGES = {"model", "tokens", "keys", "covariance", "factor", "contexts", "values", "edit", "evaluation", "drift"}
TITLE = "evaluate · memit · local · 6 facts in batches of 3 · "


@dataclass
class Prefect:
    """The API of a Prefect server."""

    url: str

    def find(self, what: str, **content: Any) -> Any:
        answer = httpx.post(f"{self.url}/api/{what}/filter", json=content, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def finished(self, count: int) -> list[dict[str, Any]]:
        """The flow runs that have ended, if there are ``count`` of them."""
        state = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}
        runs = self.find("flow_runs", flow_runs={"state": state}, sort="START_TIME_ASC")
        return runs if len(runs) >= count else []

    def states(self, run: dict[str, Any]) -> dict[str, str]:
        """The states of a run's stages, if all have ended: Prefect records them a little later."""
        tasks = self.find("task_runs", flow_runs={"id": {"any_": [run["id"]]}})
        found = {task["name"].rpartition("-")[0]: task["state_name"] for task in tasks}
        return found if set(found) == STAGES and not {"Running", "Pending"} & set(found.values()) else {}

    def artifacts(self, run_id: str, **more: Any) -> list[dict[str, Any]]:
        return self.find("artifacts", artifacts={"flow_run_id": {"any_": [run_id]}, **more})


def logged_runs(home: Path) -> list[Run]:
    """The runs in MLflow, without their stages."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("factsmith")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [run for run in found if "mlflow.parentRunId" not in run.data.tags]


def look_at(chromium: str, prefect: Prefect, run: dict[str, Any], scores: dict[str, float]) -> None:
    """The page of a run shows its stages, and the page of its table shows the scores."""
    assert run["name"].startswith(TITLE)
    (table,) = prefect.artifacts(run["id"], type={"any_": ["table"]})
    with new_page(chromium) as page:
        page.goto(f"{prefect.url}/runs/flow-run/{run['id']}")
        expect(page.get_by_text(run["name"], exact=True).first).to_be_visible()
        for word in ("Completed", "auto-scheduled", "10 Task runs"):
            expect(page.get_by_text(word, exact=True).first).to_be_visible()
        expect(page.get_by_text(re.compile("^model: built in")).first).to_be_visible()
        page.locator("#artifacts").click()
        expect(page.get_by_text("mlflow-run", exact=True).first).to_be_visible()
        page.get_by_text("scores-memit-local", exact=True).first.click()

        page.goto(f"{prefect.url}/artifacts/artifact/{table['id']}")
        for column in ("metric", "before", "after", "meaning"):
            expect(page.get_by_role("columnheader", name=column, exact=True)).to_be_visible()
        for name in ("ES", "PS", "NS"):
            row = page.get_by_role("row").filter(has_text=FAMILY.metrics[name])
            shown = [float(number) for number in re.findall(r"\d+\.\d", row.inner_text())]
            assert shown == pytest.approx([scores[f"before/{name}"], scores[f"after/{name}"]], abs=0.06)
        assert scores["before/NS"] != scores["after/NS"]


def test_serve_alone_is_enough(gpt2_folder: Path, tmp_path: Path):
    """The schedule starts a run, and another that finds everything there. Then all of it ends."""
    chromium = installed_browser()
    shutil.copytree(gpt2_folder, tmp_path / "model")
    given = tiny_arguments(Path("model"), "method.ridge=auto")
    home, log = tmp_path / "home", tmp_path / "log"
    ports = free_ports(2)
    own, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
    prefect = Prefect(own)
    # The home is relative, as the model's path.
    environment = clean_environment(FACTSMITH_HOME="home", PREFECT_RUNNER_POLL_FREQUENCY="1", OMP_NUM_THREADS="1")
    when = ["--only", "evaluate", "--interval", "15", "--name", "tiny"]
    where = ["--port", str(ports[0]), "--mlflow-port", str(ports[1])]
    command = ["factsmith.flows.cli", "serve", *given, *when, *where]
    with started(command, log, cwd=tmp_path, env=environment) as serving:
        until(lambda: "Ctrl-C stops" in log.read_text(), serving)
        assert "evaluate/tiny" in log.read_text()
        assert f"Prefect: {own}/deployments" in log.read_text()
        assert f"MLflow: {mlflow}/#/experiments/" in log.read_text()
        # The UI runs in the browser: it is told where to ask.
        assert httpx.get(f"{own}/ui-settings").json()["api_url"] == f"{own}/api"
        assert httpx.get(f"{mlflow}/health").is_success
        served = living(home / SERVED)  # for commands in the same home
        assert (served["api"], served["mlflow"]) == (f"{own}/api", mlflow)

        first = until(lambda: prefect.finished(1), serving)[0]
        made = contents(Store(home))
        assert len(made) > len(STAGES)
        assert set(until(lambda: prefect.states(first), serving).values()) == {"Completed"}

        def told() -> list[str]:
            lines = prefect.find("logs", logs={"flow_run_id": {"any_": [first["id"]]}})
            return [line["message"] for line in lines if line["name"].startswith("factsmith.")]

        # Prefect is sent logs now and then.
        until(lambda: any("ridge" in message for message in told()), serving)
        assert any(f"{mlflow}/#/experiments/" in str(one["data"]) for one in prefect.artifacts(first["id"]))
        if chromium:
            look_at(chromium, prefect, first, logged_runs(home)[0].data.metrics)

        second = until(lambda: prefect.finished(2), serving)[1]
        assert set(until(lambda: prefect.states(second), serving).values()) == {"Cached"}
        for run in (first, second):
            assert run["auto_scheduled"]
            assert run["state_type"] == "COMPLETED"
        assert contents(Store(home)) == made

        serving.send_signal(signal.SIGTERM)
        assert serving.wait(90) == 0
    assert "paused" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (home / SERVED).exists()
    for address in (own, mlflow):
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
    with sqlite3.connect(home / "prefect" / "prefect.db") as database:
        assert database.execute("SELECT name, paused FROM deployment").fetchall() == [("tiny", True)]
        (states,) = zip(*database.execute("SELECT DISTINCT state_type FROM flow_run"), strict=True)
    assert set(states) <= {"COMPLETED", "CRASHED"}

    runs = logged_runs(home)[:2]
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    scores = [{name: value for name, value in run.data.metrics.items() if "/S" in name} for run in runs]
    assert scores[0]
    assert scores[0] == scores[1]
    if not chromium:
        lacking("needs Chromium to look at the page")


def test_no_server_is_started_where_there_are_others(prefect_server, home, monkeypatch):
    """One that Prefect's settings name, and one that another ``factsmith serve`` in the same home has started."""
    monkeypatch.setattr(servers, "_serving", lambda *_: pytest.fail("a server was started"))
    with sign_of_life(home / SERVED, {"mlflow": "http://127.0.0.1:9"}) as sign:
        with servers.serving(home, "factsmith", *free_ports(2)) as pages:
            assert pages["MLflow"].startswith("http://127.0.0.1:9/#/experiments/")
        assert sign.path.exists()
