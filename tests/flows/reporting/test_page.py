"""What the page of a run shows in Prefect."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from factsmith.artifacts.processes.signs_of_life import sign_of_life
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.pipeline.environment import SERVED
from factsmith.tasks.pipeline.page import ProgressArtifacts


def ask(path: str, **content):
    answer = httpx.post(f"{PREFECT_API_URL.value()}/{path}", json=content, timeout=60)
    answer.raise_for_status()
    return answer.json()


def page_of(run_id: str) -> tuple[str, dict[str, dict]]:
    """A flow run's name, and its artifacts by key."""
    flow_run = httpx.get(f"{PREFECT_API_URL.value()}/flow_runs/{run_id}", timeout=60).json()
    found = ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
    return flow_run["name"], {one["key"]: one for one in found}


def test_a_run_says_what_it_is_and_shows_its_scores(prefect_server, home, arguments):
    with sign_of_life(home / SERVED, {"mlflow": "http://127.0.0.1:5123"}):
        report = run(compose(arguments()))
    name, artifacts = page_of(report.run_id)
    assert name.startswith("memit · local · 6 facts in batches of 3 · ")
    scores, link = artifacts["scores-memit-local"], artifacts["mlflow-run"]
    rows = {row["metric"]: row for row in json.loads(scores["data"])}
    for metric in ("ES", "PS", "NS", "S"):
        for phase in ("before", "after"):
            assert rows[metric][phase] == f"{report.metrics[phase][metric]:.1f}"
    assert f"http://127.0.0.1:5123/#/experiments/1/runs/{report.mlflow_run_id}" in link["data"]
    parts = ask("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [report.run_id]}})
    assert {part["name"] for part in parts} == {"precompute", "edit", "evaluate"}
    assert set(artifacts) == {"scores-memit-local", "mlflow-run"}  # a short run shows no progress


@pytest.fixture
def logged():
    """Log lines reach the server."""
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}):
        yield


def test_the_log_says_what_happened(prefect_server, home, arguments, logged):
    report = precompute(compose(arguments()))
    lines: list[str] = []
    deadline = time.monotonic() + 60
    while not any(line.startswith("built model") for line in lines):  # lines are sent now and then
        assert time.monotonic() < deadline, lines
        time.sleep(0.2)
        logs = ask("logs/filter", logs={"flow_run_id": {"any_": [report.run_id]}})
        lines = [log["message"] for log in logs if log["name"] == "factsmith.page"]
    assert any(report.mlflow_run_id in line for line in lines)
    for stage in report.stages:
        assert any(line.startswith(f"{stage.name}: built in") and stage.artifact in line for line in lines)


def test_progress_is_one_artifact_that_advances(prefect_server):
    from prefect import Flow
    from prefect.runtime import flow_run

    def body() -> str:
        show = ProgressArtifacts()
        show("principal directions", 20.0)
        show("principal directions", 100.0)
        return str(flow_run.id)

    _, artifacts = page_of(Flow(body, name="long")())
    assert artifacts["progress-principal-directions"]["data"] == 100.0
    ProgressArtifacts()("outside of a flow", 1.0)
