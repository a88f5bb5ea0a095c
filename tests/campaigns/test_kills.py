"""Commands that are killed at a random moment, and run again, leave what a run that was never killed leaves."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.store import Store
from tests.campaigns.campaign import Campaign
from tests.processes import start
from tests.runs import contents

SEQUENCE = ["method.batch_size=1", "dataset.batches=4", "method.sequence.evaluate_at=[2,4]"]

COMMANDS = {
    "run": ["run"],
    "sequence": ["run", *SEQUENCE, "method.sequence.history=full", "method.sequence.checkpoint_every=1"],
    "sequence of an editor": ["run", "method=grace", "method.layers=[1]", *SEQUENCE, "method.sequence.history=none"],
    "sweep": ["sweep", "method.preservation_weight=1,10"],
    "edit --out": ["edit", "--out", "OUT", "method.batch_size=6", "dataset.batches=1"],
}
"""The commands, without the arguments that all runs on the tiny model have. OUT is a folder to write to."""


def _command(arguments: list[str]) -> None:
    """The command line, in a process group of its own."""
    from factsmith.flows.cli.main import main

    os.setsid()
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    sys.argv = ["factsmith", *arguments]
    main()


def _finish(arguments: list[str]) -> float:
    """Run a command to its end. Returns the seconds that it took."""
    started = time.monotonic()
    process = start(_command, arguments)
    process.join(600)
    assert process.exitcode == 0, arguments
    return time.monotonic() - started


def _kill(process: ForkServerProcess) -> None:
    """Kill a command and all that it has started. It cannot clean up."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # It has no group yet.
        process.kill()
    process.join()


def _left(home: Path, out: Path) -> dict[str, str]:
    """The content of every artifact, and of every file of an export."""
    files = {str(path.relative_to(out)): Checksums.read(path) for path in out.rglob("*") if path.is_file()}
    return contents(Store(home)) | files


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment(name, arguments, tmp_path, monkeypatch):
    campaign = Campaign(f"kills of `{name}`", few=2)

    def given(folder: Path) -> list[str]:
        monkeypatch.setenv("FACTSMITH_HOME", str(folder / "home"))
        command, *more = [str(folder / "out") if word == "OUT" else word for word in COMMANDS[name]]
        options = [word for word in more if "=" not in word]
        return [command, *options, *arguments(*(word for word in more if "=" in word))]

    seconds = _finish(given(tmp_path / "whole"))
    wanted = _left(tmp_path / "whole" / "home", tmp_path / "whole" / "out")
    for case in campaign.cases():
        folder = tmp_path / str(case)
        words = given(folder)
        while True:
            process = start(_command, words)
            process.join(campaign.random.uniform(0, seconds))
            if process.exitcode is not None:
                assert process.exitcode == 0
                campaign.counts["ended before the kill"] += 1
                break
            _kill(process)
            campaign.counts["kills"] += 1
            if campaign.random.random() < 0.5:
                break
        _finish(words)
        store = Store(folder / "home")
        assert _left(folder / "home", folder / "out") == wanted
        assert not [fault for path in store.all_paths() for fault in store.verify(path)]
        assert not list((store.root / "staging").iterdir())
        assert {path.name for path in folder.iterdir()} <= {"home", "out"}, "an export left something beside its folder"
        campaign.counts["ended as if never killed"] += 1
