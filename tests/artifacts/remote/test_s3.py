"""Pushing to and pulling from a server that speaks S3: killed, corrupted, refused, broken and silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from factsmith.artifacts.manifest import MANIFEST_NAME
from factsmith.artifacts.remote import location
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.messages import remedy
from factsmith.artifacts.remote.mirror import Mirror
from tests.artifacts.remote.conftest import FACTOR
from tests.runs import contents
from tests.s3 import SECRET, empty_bucket, failing, s3_server, use_s3, with_authentication

URL = "s3://bucket/some/statistics"


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(endpoint, monkeypatch):
    """The file system of an empty bucket."""
    with empty_bucket(monkeypatch, endpoint, "bucket") as filesystem:
        yield filesystem


KILLED = """
import os, signal, sys
from factsmith.artifacts.remote.location import Location
from factsmith.flows.cli.main import main

send, left = Location.send, int(sys.argv.pop())

def send_or_die(self, source, name):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    send(self, source, name)

Location.send = send_or_die
main()
"""


def test_a_killed_push_is_not_taken_for_whole_and_continues(moved, cli, store, other, s3, monkeypatch):
    arguments = ["store", "push", "factor", URL, "7"]  # the seventh file is one of the third artifact
    environment = {**os.environ, "FACTSMITH_HOME": str(store.root)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = Mirror(Location.open(URL)).places()
    assert 1 <= len(whole) <= 2
    code, _, err = cli(other, "store", "pull", "factor", URL)
    assert code == 2
    assert "No artifacts" in err

    sent: list[str] = []
    send = Location.send
    monkeypatch.setattr(Location, "send", lambda self, source, name: sent.append(name) or send(self, source, name))
    pushed = moved(store, "push", "factor", URL)
    assert sum(one["state"] == "there" for one in pushed["artifacts"]) == len(whole)
    assert not [name for name in sent if any(place in name for place in whole)]
    moved(other, "pull", "factor", URL)
    assert contents(other) == {name: one for name, one in contents(store).items() if not name.startswith("keys/")}
    names = {path.rpartition("/")[2] for path in s3.find("bucket/some/statistics/artifacts")}
    assert names == {"a.bin", "b.txt", MANIFEST_NAME}


def test_corrupted_bytes_are_named(moved, cli, store, other, s3):
    moved(store, "push", "factor", URL)
    (path,) = s3.glob(f"bucket/some/statistics/artifacts/factor/*/{FACTOR.member(layer=0).digest}/b.txt")
    s3.pipe_file(path, b"factor X")
    code, _, err = cli(other, "store", "pull", "factor", URL)
    assert code == 2
    assert f"s3://{path} is damaged" in err
    assert not other.at(other.place(FACTOR.member(layer=0)))


def test_who_may_not_read_is_told_so(cli, store, s3, endpoint):
    with with_authentication(endpoint):
        for command in ("push", "pull"):
            code, _, err = cli(store, "store", command, "factor", URL)
            assert code == 2
            assert "AWS_ACCESS_KEY_ID" in err
            assert SECRET not in err
    code, _, err = cli(store, "store", "push", "factor", "s3://no-such-bucket/x")
    assert (code, "there is no bucket no-such-bucket" in err) == (2, True)


@pytest.mark.parametrize("answers", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_server_that_fails_or_never_answers_is_given_up(cli, store, monkeypatch, answers):
    monkeypatch.setattr(location, "_TIMEOUT", 0.3)
    started = time.monotonic()
    with failing(answers=answers) as url:
        use_s3(monkeypatch, url)
        code, _, err = cli(store, "store", "push", "factor", URL)
    assert code == 2
    assert f"{URL} cannot be read" in err
    assert "run the same command again" in err
    assert time.monotonic() - started < 25


def test_a_port_that_looks_like_a_refusal_is_none():
    unreachable = ConnectionError('Read timeout on endpoint URL: "http://127.0.0.1:44019/bucket"')
    assert "run the same command again" in remedy(unreachable, "s3")
    assert "AWS_ACCESS_KEY_ID" in remedy(OSError("403"), "s3")
