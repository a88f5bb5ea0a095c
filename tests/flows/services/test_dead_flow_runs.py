"""A run whose process was killed is marked as crashed in Prefect by the next command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.settings import PREFECT_API_URL

from factsmith.flows.services.dead_flow_runs import crash_dead_flow_runs
from factsmith.tasks.tracking.runs import past_runs


def test_the_next_command_marks_what_was_killed(prefect_server, database, home, arguments):
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    endless = arguments("method.preservation=identity", "method.value.steps=100000", "method.value.stop_loss=0")
    command = [sys.executable, "-m", "factsmith.flows.cli", "run", *endless]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list(home.glob("artifacts/contexts")):  # it is at the value vectors, in a subflow
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        crash_dead_flow_runs(home)
        assert {run.status for run in past_runs(home)} == {"RUNNING"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (sign,) = (home / "runs").glob("*.json")
    assert {run.status for run in past_runs(home)} == {"KILLED"}
    flow_run = UUID(json.loads(sign.read_text())["prefect"])
    crash_dead_flow_runs(home)
    assert not sign.exists()
    with get_client(sync_client=True) as client:
        outer = client.read_flow_run(flow_run)
        below = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [outer.id]}})
        parts = {run.name: run.state_name for run in client.read_flow_runs(flow_run_filter=below)}
    assert outer.state_name == "Crashed"
    assert "killed" in outer.state.message
    assert parts == {"precompute": "Completed", "edit": "Crashed"}
