"""Runs whose store is a bucket: killed, suspended for longer than a lease lasts, and with a server in trouble."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from tests.campaigns.campaign import Campaign
from tests.campaigns.commands import begin, finish, kill_at_random
from tests.s3 import empty_bucket, s3_server

_LEASE = 3.0
"""Seconds that a lease lasts here."""


def _be_quick() -> None:
    """Let a process wait for a server and for a lease as many seconds as it usually waits minutes."""
    from factsmith.artifacts.remote import location
    from factsmith.artifacts.remote.shared import leases, patience

    location._TIMEOUT = 1
    patience._PAUSES = (0.1, 0.3, 1.0)
    leases.LENGTH = _LEASE


@pytest.fixture
def bucket(monkeypatch):
    """The file system of an empty bucket."""
    with s3_server() as url, empty_bucket(monkeypatch, url, "team") as filesystem:
        yield filesystem


@pytest.fixture
def use(monkeypatch, tmp_path, bucket) -> Callable[..., Callable[[], dict[str, str]]]:
    """Makes a store in the bucket the home, with copies in the folder of a machine. Gives what shows its contents."""

    def call(name: str, machine: str = "one") -> Callable[[], dict[str, str]]:
        monkeypatch.setenv("FACTSMITH_HOME", f"s3://team/{name}")
        monkeypatch.setenv("FACTSMITH_CACHE", str(tmp_path / name / machine))

        def there() -> dict[str, str]:
            finish(["store", "verify"])
            paths = [path for path in bucket.find(f"team/{name}/artifacts") if path.endswith("manifest.json")]
            return {path.partition("/artifacts/")[2]: json.loads(bucket.cat(path))["content"] for path in paths}

        return there

    return call


@pytest.fixture
def whole(arguments, use) -> tuple[list[str], dict[str, str], float]:
    """A command, the contents of the store when nothing happened to it, and the seconds that it took."""
    words, there = ["run", *arguments()], use("whole")
    seconds = finish(words)
    return words, there(), seconds


@pytest.fixture
def cases(use, whole, tmp_path) -> Callable[[Campaign, str], Iterator[tuple[str, Path]]]:
    """The cases of a campaign, each with a store of its own: its name, and a file for what is said.

    After each, the store has the contents of one to which nothing happened. This is counted as the outcome.
    """

    def call(campaign: Campaign, outcome: str) -> Iterator[tuple[str, Path]]:
        for case in campaign.cases():
            there = use(name := f"case-{case}")
            yield name, tmp_path / f"{case}.txt"
            assert there() == whole[1]
            campaign.counts[outcome] += 1
            shutil.rmtree(tmp_path / name)

    return call


@pytest.mark.slow
def test_killed_at_any_moment(whole, cases):
    words, _, seconds = whole
    campaign = Campaign("kills of `run` in a bucket", few=2)
    for _, said in cases(campaign, "ended as if never killed"):
        kill_at_random(campaign, words, seconds, said)


@pytest.mark.slow
def test_a_lease_that_expires_while_its_holder_is_suspended(whole, cases, use):
    words, _, seconds = whole
    campaign = Campaign("leases that expire", few=2)
    for name, said in cases(campaign, "both ended, with the same bytes"):
        suspended = begin(words, said, _be_quick)
        suspended.join(campaign.random.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.killpg(suspended.pid, signal.SIGSTOP)
        use(name, "two")
        finish(words, before=_be_quick)
        with suppress(ProcessLookupError):
            os.killpg(suspended.pid, signal.SIGCONT)
        suspended.join(600)
        assert suspended.exitcode == 0, said.read_text()[-3000:]
        campaign.counts["of them told of a lost lease"] += "Somebody else has taken over" in said.read_text()


class Trouble:
    """What a server does for some time: errors, late answers, no answers, and answers that get lost on their way."""

    KINDS = ("error", "late", "none", "lost")

    def __init__(self, random: Random, kinds: tuple[str, ...], share: float) -> None:
        self._random = random
        self._kinds = kinds
        self._share = share
        self.seen = 0

    def next(self) -> str | None:
        """What happens to the next request; ``None`` if it is answered."""
        if self._random.random() > self._share:
            return None
        self.seen += 1
        return self._random.choice(self._kinds)


@contextmanager
def _in_trouble(trouble: Trouble) -> Iterator[None]:
    """The servers of this process are in trouble."""
    from werkzeug.serving import WSGIRequestHandler

    answer, ended = WSGIRequestHandler.run_wsgi, threading.Event()

    def fail(self: WSGIRequestHandler) -> None:
        kind = trouble.next()
        if kind == "error":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind in ("none", "lost"):
            self.close_connection = True
        if kind == "none":
            ended.wait(5)
            return
        if kind == "late":
            time.sleep(0.7)
        if kind == "lost":
            self.wfile = io.BytesIO()
        answer(self)

    WSGIRequestHandler.run_wsgi = fail
    try:
        yield
    finally:
        WSGIRequestHandler.run_wsgi = answer
        ended.set()


@pytest.mark.slow
def test_a_server_in_trouble(whole, cases):
    words, _, seconds = whole
    campaign = Campaign("S3 servers in trouble", few=4)
    for name, said in cases(campaign, "had the same bytes at last"):
        kinds = campaign.random.choice([Trouble.KINDS, *((kind,) for kind in Trouble.KINDS)])
        trouble = Trouble(campaign.random, kinds, campaign.random.choice([0.1, 0.5, 1.0]))
        process = begin(words, said, _be_quick)
        process.join(campaign.random.uniform(0, seconds))
        with _in_trouble(trouble):
            process.join(campaign.random.uniform(0, seconds))
        process.join(600)
        text = said.read_text()
        assert process.exitcode in (0, 2), text[-3000:]
        assert "Traceback" not in text, text[-3000:]
        if process.exitcode == 2:
            assert f"s3://team/{name}" in text, text[-3000:]
        campaign.counts["ended" if process.exitcode == 0 else "said so"] += 1
        campaign.counts["requests that failed"] += trouble.seen
        finish(words, before=_be_quick)
