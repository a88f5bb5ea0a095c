"""Leases: one holder, takeover from the dead, and a holder that learns that its lease is lost."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from factsmith.artifacts.processes.machine import machine as machine_name
from factsmith.artifacts.remote.location import Location, UnreachableError
from factsmith.artifacts.remote.shared import leases
from factsmith.artifacts.remote.shared.leases import Lease, has_ended, is_live
from factsmith.artifacts.remote.versions import create, entries, look, remove_version, replace, server_time
from tests.artifacts.remote.shared.conftest import SERIES, machine, write

NAME = "leases/a.json"


@pytest.fixture(params=["folder", "s3", "memory"])
def location(request, tmp_path) -> Location:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Location.open("s3://team/some/store")
    return Location.open(f"file://{tmp_path}/store" if request.param == "folder" else f"memory://{tmp_path.name}")


def test_a_version_is_written_only_over_the_one_that_was_seen(location):
    first = create(location, NAME, b"first")
    assert create(location, NAME, b"other") is None
    assert look(location, NAME).tag == first
    assert 0 <= look(location, NAME).age < 60
    second = replace(location, NAME, b"second", first)
    assert second not in (None, first)
    assert replace(location, NAME, b"third", first) is None
    assert location.read(NAME) == b"second"
    assert entries(location, "leases")["a.json"].tag == second
    assert entries(location, "leases")["a.json"].modified <= server_time(location) + 1
    assert not remove_version(location, NAME, first)
    assert remove_version(location, NAME, second)
    assert look(location, NAME) is None
    assert replace(location, NAME, b"third", second) is None
    assert not remove_version(location, NAME, second)


def test_one_holds_a_lease_and_the_other_waits(location, caplog):
    caplog.set_level(logging.INFO)
    order: list[str] = []
    one, two = (Lease(location, NAME, "a build") for _ in range(2))

    def wait() -> None:
        with two.held():
            order.append("two")

    with one.held():
        content = json.loads(location.read(NAME))
        assert {"machine", "process", "since", "seconds", "owner"} <= content.keys()
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        order.append("one")
    waiting.join(30)
    assert order == ["one", "two"]
    assert f"waiting for a build at {location.url} (machine {content['machine']}, process {os.getpid()}" in caplog.text
    assert look(location, NAME) is None
    assert not one.lost


def test_a_dead_machine_s_lease_is_taken_over_whatever_clocks_say(tmp_path, monkeypatch, caplog):
    location = Location.open(f"file://{tmp_path}/store")
    dead = {"owner": "x", "machine": "gone", "process": 7, "since": "2030-01-01T00:00:00+00:00", "seconds": 100}
    create(location, NAME, json.dumps(dead).encode())
    monkeypatch.setattr(time, "time", lambda: 9e9)  # This machine's clock is wrong by two centuries.
    assert not Lease(location, NAME, "a build").take_at_once()
    assert look(location, NAME).age < 60
    file = tmp_path / "store" / NAME
    then = file.stat().st_mtime - 101
    os.utime(file, (then, then))
    with Lease(location, NAME, "a build").held():
        assert "took over the lease of a build: machine gone, process 7" in caplog.text


def test_a_killed_process_s_lease_is_taken_over_at_once_on_its_machine(tmp_path, caplog):
    location = Location.open(f"file://{tmp_path}/store")
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = {"owner": "x", "machine": "m", "boot": machine_name(), "process": killed.pid, "seconds": 100}
    for other in ({"process": os.getpid()}, {"process": "x"}, {"process": 10**30}, {"boot": "other"}, {"boot": None}):
        assert not has_ended({**left, **other})
    create(location, NAME, json.dumps(left).encode())
    assert is_live(location, NAME) is None
    with Lease(location, NAME, "a build").held():
        assert f"took over the lease of a build: machine m, process {killed.pid} has ended" in caplog.text


def test_a_lease_is_renewed_while_it_is_held_and_a_failure_in_between_does_no_harm(tmp_path, monkeypatch, caplog):
    location = Location.open(f"file://{tmp_path}/store")
    monkeypatch.setattr(leases, "LENGTH", 0.3)
    real, calls = leases.replace, []

    def sometimes(*given):
        calls.append(given)
        if len(calls) == 1:
            raise UnreachableError("The server does not answer.")
        if len(calls) == 2:
            real(*given)  # It was written, and the answer did not arrive.
            return None
        return real(*given)

    monkeypatch.setattr(leases, "replace", sometimes)
    lease = Lease(location, NAME, "a build")
    with lease.held():
        before = look(location, NAME).tag
        deadline = time.monotonic() + 10
        while len(calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert look(location, NAME).tag != before
    assert "could not be renewed; trying again" in caplog.text
    assert not lease.lost
    assert look(location, NAME) is None


def test_a_builder_whose_lease_was_taken_over_learns_it_and_nothing_is_corrupt(tmp_path, folder, monkeypatch, caplog):
    """As on a machine that was suspended: it wakes up, finishes, and finds that another has built the artifact."""
    one, two = (machine(tmp_path / name, folder) for name in ("one", "two"))
    recipe = SERIES.member(n=1)
    file = Path(folder.removeprefix("file://")) / "leases" / f"{recipe.digest}.json"

    def suspended(draft) -> None:
        write("one")(draft)
        then = file.stat().st_mtime - 2 * leases.LENGTH
        os.utime(file, (then, then))
        artifact, built = two.get_or_build(recipe, write("two"))
        assert built
        assert (artifact.path / "b.txt").read_text() == "two"

    artifact, _ = one.get_or_build(recipe, suspended)
    assert (artifact.path / "b.txt").read_text() == "two"
    assert "took over the lease of the build of" in caplog.text
    assert "Somebody else has taken over the lease" in caplog.text
    assert not file.exists()
