"""Killed at any stage, a rerun goes on where it was and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from factsmith.artifacts.store import Store
from tests.runs import artifacts, contents, states

KINDS = ["model", "tokens", "keys", "covariance", "factor", "contexts", "values", "edit", "scores", "evaluation"]

KILLED_RUN = """
import os, signal, sys

from factsmith.tasks.pipeline.environment import prepare_command_line

prepare_command_line()
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.run import run
from factsmith.tasks.keys import stage as keys_stage

kind, number, *arguments = sys.argv[1:]
key_reader._SHARD_ROWS = 400
publish = Store._publish
seen = 0

def publish_or_die(self, draft, seconds):
    global seen
    if draft.recipe.series.kind == kind:
        seen += 1
        if seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
    publish(self, draft, seconds)

Store._publish = publish_or_die
run(compose(arguments))
"""


@pytest.fixture
def killed(prefect_server: None, home: Path, arguments, monkeypatch):
    """Run the pipeline in a process that is killed just before it publishes the n-th artifact of a kind."""
    from factsmith.tasks.keys import stage as keys_stage

    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)

    def call(kind: str, number: int = 1, *more: str) -> None:
        environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, kind, str(number), *arguments(*more)],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr

    return call


@pytest.mark.slow
def test_killed_at_every_stage_in_turn(killed, pipeline, store, tmp_path, monkeypatch):
    for place, kind in enumerate(KINDS):
        killed(kind)
        assert {path.parent.parent.name for path in store.all_paths()} == set(KINDS[:place])
        assert list((store.root / "staging").iterdir()), "nothing was being written"
    report = pipeline()
    assert {name for name, state in states(report).items() if state == "built"} == {"evaluation"}
    assert not list((store.root / "staging").iterdir())
    interrupted = contents(store)

    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    again = pipeline()
    assert contents(Store(tmp_path / "there")) == interrupted
    assert again.metrics == report.metrics


def test_killed_between_shards_only_the_rest_is_collected(killed, pipeline, store):
    killed("keys", 4)  # two layers: three shards of four are published
    published = {one.digest: one.path.stat().st_mtime_ns for one in artifacts(store, "keys")}
    assert len(published) == 3
    pipeline()
    after = {one.digest: one.path.stat().st_mtime_ns for one in artifacts(store, "keys")}
    assert len(after) == 4
    assert published.items() <= after.items()
