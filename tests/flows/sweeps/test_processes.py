"""Processes that do one piece of work at a time: what they return, show and log, and how they end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from factsmith.flows.sweeps import processes
from factsmith.flows.sweeps.processes import Died, in_processes
from factsmith.tasks.pipeline.progress import progress
from tests.processes import start


@contextmanager
def begin(number):
    """What the processes of these tests do."""
    print("nothing of this is seen on stdout", file=sys.stderr)
    yield lambda work: _do(number, work)


def _do(number, work):
    what, given = work
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fail":
        sys.exit(3)
    elif what == "endless":
        Path(given, f"{os.getpid()}.pid").touch()
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            Path(given, f"{os.getpid()}.stopped").touch()
            raise
    elif what == "show":
        with progress("shown", 3) as advance:
            for _ in range(3):
                advance(1)
        logging.getLogger("factsmith.test").info("from %s", "another process")
    return number, os.getpid(), os.environ.get("OF_THIS_TEST"), torch.get_num_threads()


def chooser(*given):
    waiting = list(given)
    return lambda number: waiting.pop(0) if waiting else None


def test_work_is_done_by_as_many_processes_as_there_is_room_for(forked, monkeypatch, caplog):
    monkeypatch.setenv("OF_THIS_TEST", "seen")
    shown = []

    @contextmanager
    def show(name, total):
        shown.append((name, total))
        yield shown.append

    monkeypatch.setattr(processes, "progress", show)
    with caplog.at_level(logging.INFO, "factsmith"):
        found = list(in_processes(2, begin, chooser(("show", None), *[("work", None)] * 4), threads=1))
    assert len(found) == 5
    assert len({pid for _, (_, pid, _, _) in found}) == 2
    assert os.getpid() not in {pid for _, (_, pid, _, _) in found}
    assert all(process == number for process, (number, *_) in found)
    assert {(seen, threads) for _, (_, _, seen, threads) in found} == {("seen", 1)}
    assert shown[0] == ("1: shown", 3)
    assert sum(shown[1:]) == 3
    assert [record.getMessage() for record in caplog.records] == ["from another process"]


def test_one_that_dies_ends_its_work_and_no_other(forked):
    given = chooser(("kill", None), ("fail", None), *[("work", None)] * 3)
    found = [result for _, result in in_processes(2, begin, given, threads=1)]
    died = {str(one) for one in found if isinstance(one, Died)}
    assert died == {"killed by SIGKILL", "exit code 3"}
    assert len(found) == 5


def test_none_is_left_when_the_caller_stops(forked, tmp_path):
    given = chooser(("work", None), *[("endless", str(tmp_path))] * 2)
    with closing(in_processes(2, begin, given, threads=1)) as found:
        next(found)
        # The one that is free starts on the other endless work only when it is asked for, which it is not.
        while not (begun := list(tmp_path.glob("*.pid"))):
            time.sleep(0.02)
    assert [path.stem for path in tmp_path.glob("*.stopped")] == [path.stem for path in begun]
    assert not Path(f"/proc/{begun[0].stem}").exists()


def _call(folder: str) -> None:
    list(in_processes(2, begin, chooser(*[("endless", folder)] * 2), threads=1))


@pytest.mark.slow
def test_none_outlives_a_caller_that_is_killed(tmp_path):
    caller = start(_call, str(tmp_path))
    while len(begun := list(tmp_path.glob("*.pid"))) < 2:
        assert caller.is_alive()
        time.sleep(0.1)
    caller.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{path.stem}").exists() for path in begun):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(list(tmp_path.glob("*.stopped"))) == 2
