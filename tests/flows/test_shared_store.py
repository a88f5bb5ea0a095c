"""Runs whose store is a bucket: on one machine, then on another one."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from factsmith.artifacts.remote.location import Location
from tests.processes import count_what_is_built, start
from tests.runs import KINDS
from tests.s3 import counted, empty_bucket, s3_server

URL = "s3://team/store"


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """The file system of an empty bucket, which is the home."""
    with empty_bucket(monkeypatch, endpoint, "team") as filesystem:
        monkeypatch.setenv("FACTSMITH_HOME", URL)
        yield filesystem


@pytest.fixture
def on(factsmith, plain_flows, monkeypatch, tmp_path):
    """Runs a command on one of several machines, each with a folder for its copies."""

    def call(machine: str, *words: str):
        monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / machine))
        return factsmith(*words)

    return call


def test_a_second_machine_finds_everything_cached(on, bucket, arguments, tmp_path, monkeypatch):
    first = on("one", "run", "--json", *arguments())
    assert first.code == 0, first.err
    fetched: list[str] = []
    fetch = Location.fetch_if_there
    monkeypatch.setattr(
        Location, "fetch_if_there", lambda self, name, file: fetched.append(name) or fetch(self, name, file)
    )
    with counted() as requests:
        second = on("two", "run", "--json", *arguments())
    assert second.code == 0, second.err
    reports = [json.loads(result.out) for result in (first, second)]
    assert {stage["state"] for stage in reports[1]["stages"]} == {"cached"}
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert len(requests) <= 50
    listed = Counter(request for request in requests if request.startswith("LIST"))
    assert set(listed.values()) == {1}  # Each series once, whatever the number of its shards.
    read = {name.split("/")[1] for name in fetched}
    assert read == {"contexts", "scores", "evaluation", "drift"}  # Neither keys, nor C0, nor edits.

    with counted() as requests:
        again = on("two", "run", "--json", *arguments())
    assert {stage["state"] for stage in json.loads(again.out)["stages"]} == {"cached"}
    assert len(requests) <= 15


@pytest.mark.slow
def test_eight_processes_on_two_machines_build_each_artifact_once(bucket, arguments, tmp_path, monkeypatch):
    ready = [tmp_path / f"ready-{n}" for n in range(8)]
    found = [tmp_path / f"found-{n}.json" for n in range(8)]
    processes = []
    for n in range(8):
        monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / f"machine-{n % 2}"))
        more = ["dataset.batches=3"] if n >= 4 else []
        processes.append(start(count_what_is_built, ready[n], ready[n - 1], found[n], arguments(*more)))
    for process in processes:
        process.join(900)
        assert process.exitcode == 0
    answers = [json.loads(path.read_text()) for path in found]
    built = Counter(address for answer in answers for address in answer["built"])
    assert set(built.values()) == {1}
    assert {address.partition("/")[0] for address in built} == set(KINDS)
    there = {f"{path.split('/')[3]}/{path.split('/')[5]}" for path in bucket.find("team/store/artifacts")}
    assert there == set(built)
    assert not [path for path in bucket.find("team/store/leases") if path.endswith(".json")]
