"""Commands use the Prefect server that there is, and run without Prefect where there is none."""

from __future__ import annotations

import json

import pytest
from prefect import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from factsmith.artifacts.processes.signs_of_life import sign_of_life
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.environment import SERVED
from tests.runs import contents


def test_without_a_server_a_run_is_the_same_without_prefect(factsmith, prefect_server, arguments, home, monkeypatch):
    def report():
        done = factsmith("run", *arguments("dataset.batches=1"), "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    seen = report()
    assert seen["run_id"]
    made = contents(Store(home))
    monkeypatch.setenv("FACTSMITH_HOME", str(home.with_name("other")))
    with temporary_settings({PREFECT_API_URL: None}), monkeypatch.context() as patch:
        patch.setattr(Flow, "__call__", lambda *_, **__: pytest.fail("Prefect was asked to run a flow"))
        unseen = report()
    assert unseen["run_id"] is None
    assert (unseen["metrics"], unseen["intervals"]) == (seen["metrics"], seen["intervals"])
    assert [stage["name"] for stage in unseen["stages"]] == [stage["name"] for stage in seen["stages"]]
    assert contents(Store(home.with_name("other"))) == made


def test_the_server_of_serve_in_the_same_home_is_used(factsmith, prefect_server, arguments, home):
    address = PREFECT_API_URL.value()
    with temporary_settings({PREFECT_API_URL: None}), sign_of_life(home / SERVED, {"api": address}):
        done = factsmith("run", *arguments("dataset.batches=1"), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["run_id"]
