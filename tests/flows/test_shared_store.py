"""Runs whose store is a bucket: on one machine, then on another one."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from factsmith.artifacts.remote.location import Location
from tests.s3 import counted, s3_server, use_s3

URL = "s3://team/store"


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """The file system of an empty bucket, which is the home."""
    import s3fs

    use_s3(monkeypatch, endpoint)
    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    filesystem.mkdir("team")
    monkeypatch.setenv("FACTSMITH_HOME", URL)
    yield filesystem
    filesystem.rm("team", recursive=True)


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
