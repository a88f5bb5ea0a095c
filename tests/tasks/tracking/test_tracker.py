"""What MLflow keeps of a run, also of one whose process was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from factsmith.artifacts.errors import InputError
from factsmith.tasks.tracking import tracker as module
from factsmith.tasks.tracking.runs import past_runs
from factsmith.tasks.tracking.tracker import Tracker, connect, open_experiment

pytestmark = pytest.mark.usefixtures("_mlflow_tables")


def begin(home, **more) -> Tracker:
    home.mkdir(exist_ok=True)
    return Tracker(home, experiment="factsmith", name="one", flow="run", settings={"a": 1}, **more)


def log_stage(tracker: Tracker, name: str) -> None:
    tags = {"state": "built", "artifact": "a"}
    tracker.stage(name, started=time.time(), metrics={"seconds": 1.0}, tags=tags, failed=False)


def test_the_description_and_the_dataset(home, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text("{}")
    tracker = begin(home, note="Writes 2 facts.")
    running = tracker.client.get_run(tracker.run_id)
    assert running.data.tags["mlflow.note.content"] == "Writes 2 facts."
    tracker.dataset("facts", digest="d" * 64, source=str(facts), facts=2)
    tracker.note("| a table |")
    tracker.end(failed=False, metrics={"seconds/keys": 2.0}, tags={"state.keys": "built"})
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.tags["mlflow.note.content"] == "Writes 2 facts.\n\n| a table |"
    assert (run.data.tags["state.keys"], run.data.metrics["seconds/keys"]) == ("built", 2.0)
    (read,) = run.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("facts", "d" * 36)
    assert json.loads(read.dataset.source) == {"uri": str(facts)}
    assert json.loads(read.dataset.profile) == {"num_rows": 2}


def test_a_run_does_not_wait_until_its_stages_are_written(home, monkeypatch):
    tracker = begin(home)
    create = tracker.client.create_run
    monkeypatch.setattr(tracker.client, "create_run", lambda *a, **b: (time.sleep(0.5), create(*a, **b))[1])
    began = time.monotonic()
    for name in ("keys", "factor"):
        log_stage(tracker, name)
    assert time.monotonic() - began < 0.4
    tracker.end(failed=False)
    runs = tracker.client.search_runs([tracker.experiment])
    assert {run.info.run_name for run in runs} == {"one", "keys", "factor"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert runs[1].data.metrics["seconds"] == 1.0


def test_what_cannot_be_written_is_reported_at_the_end(home, monkeypatch):
    tracker = begin(home)
    monkeypatch.setattr(tracker, "_start", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    log_stage(tracker, "keys")
    with pytest.raises(OSError, match="disk full"):
        tracker.end(failed=False)


_BEGINS = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from factsmith.tasks.tracking.dead_runs import alive
from factsmith.tasks.tracking.tracker import Tracker, connect, open_experiment
home = Path(sys.argv[1])
with ExitStack() as lives:
    for prefect in (None, "a-flow-run"):
        tracker = Tracker(home, experiment="factsmith", name="killed", flow="run", settings={})
        lives.enter_context(alive(home, tracker.run_id, {"uri": tracker.uri, "prefect": prefect}))
        print(tracker.run_id, flush=True)
    time.sleep(120)
"""


def test_a_killed_run_does_not_stay_running(home):
    begin(home).end(failed=False)
    process = subprocess.Popen([sys.executable, "-c", _BEGINS, str(home)], stdout=subprocess.PIPE, text=True)
    ids = [process.stdout.readline().strip() for _ in range(2)]
    signs = list((home / "runs").glob("*.json"))
    assert len(signs) == 2
    statuses = {run.id: run.status for run in past_runs(home)}
    assert [statuses[one] for one in ids] == ["RUNNING"] * 2  # as they are
    for sign in signs:
        os.utime(sign, (2_000_000_000, 2_000_000_000))
    process.send_signal(signal.SIGKILL)
    process.wait()
    statuses = {run.id: run.status for run in past_runs(home)}
    assert [statuses[one] for one in ids] == ["KILLED"] * 2
    client = MlflowClient(module.tracking_uri(home))
    for one in ids:
        assert client.get_run(one).info.end_time == 2_000_000_000_000  # when it was last known to live
    (left,) = (home / "runs").glob("*.json")
    assert json.loads(left.read_text())["prefect"] == "a-flow-run"  # Prefect has not been told yet


def test_a_dead_run_of_another_mlflow_waits_for_it(home, monkeypatch):
    from factsmith.artifacts.processes.signs_of_life import sign_of_life

    tracker = begin(home)
    with sign_of_life(home / "runs" / "a.json", {"mlflow": tracker.run_id, "uri": "http://elsewhere"}):
        pass
    past_runs(home)
    assert tracker.client.get_run(tracker.run_id).info.status == "RUNNING"
    assert (home / "runs" / "a.json").exists()


_CONNECT = (
    "import sys, pathlib; from factsmith.tasks.tracking.tracker import connect; connect(pathlib.Path(sys.argv[1]))"
)


def test_a_home_survives_a_kill_while_mlflow_makes_its_tables(home):
    home.mkdir()
    process = subprocess.Popen([sys.executable, "-c", _CONNECT, str(home)])
    while not any(file.stat().st_size for file in home.glob(".mlflow-*/mlflow.db")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert [path.name.startswith(".mlflow-") for path in home.iterdir()] == [True]
    assert open_experiment(connect(home), home, "factsmith")
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]


def test_a_database_that_mlflow_cannot_use_is_told(home):
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match=r"MLflow's database .* cannot be used") as caught:
        connect(home)
    assert "move" in caught.value.details["remedy"]


def test_a_file_that_is_no_sign_of_life_is_left_alone(home):
    (home / "runs").mkdir(parents=True)
    for name, content in (("a", "{}"), ("b", "[]"), ("c", "no JSON")):
        (home / "runs" / f"{name}.json").write_text(content)
    connect(home)
