"""A run on a hub model equals a run on the same model in a folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from factsmith.artifacts.store import Store
from tests.runs import artifacts, contents, states

NAME = "somebody/tiny-gpt2"


def test_where_a_model_comes_from_changes_nothing_but_is_remembered(
    stages_in_mlflow, hub, pipeline, store, gpt2_folder
):
    commit = hub.publish(NAME, gpt2_folder)
    report = pipeline(f"model.path={NAME}")
    (model,) = artifacts(store, "model")
    assert model.summary["hub"] == f"{NAME}@{commit}"
    client = MlflowClient(tracking_uri=f"sqlite:///{store.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("factsmith").experiment_id
    (stage,) = client.search_runs([experiment], "tags.stage = 'model'")
    assert stage.data.tags["hub"] == f"{NAME}@{commit}"
    before = contents(Store(store.root))
    again = pipeline(f"model.path={gpt2_folder}")
    assert set(states(again).values()) == {"cached"}
    assert contents(Store(store.root)) == before
    assert again.metrics == report.metrics


@pytest.mark.parametrize("offline", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_command_line_respects_the_environment(hub, tmp_path, offline):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "FACTSMITH_HOME": str(tmp_path / "home"),
    }
    given = ["plan", "model=local", f"model.path={NAME}", "corpus=embedded", "dataset=embedded", "method.layers=[0]"]
    done = subprocess.run(
        [sys.executable, "-m", "factsmith.flows.cli", *given],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert ("HF_HUB_OFFLINE forbids" if offline else "spelling of model.path") in done.stderr
    assert bool(hub.asked) != offline
    assert not (tmp_path / "home").exists()
