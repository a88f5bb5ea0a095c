"""Commands in process groups of their own, and what they leave."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.store import Store
from tests.campaigns.campaign import Campaign
from tests.processes import start
from tests.runs import contents

__all__ = ["begin", "finish", "kill_at_random", "left"]

_OF_A_RUN = re.compile(r"[0-9a-f]{32}|\d{4}-\d\d-\d\d(T[0-9:.]+Z?)?|\b[0-9a-f]{8}\b")
"""Names of runs in MLflow and times, which differ from run to run."""


def begin(
    arguments: list[str], said: Path = Path(os.devnull), before: Callable[..., None] | None = None, *given: object
) -> ForkServerProcess:
    """Start a command.

    Args:
        arguments: its words.
        said: the file that its output goes to.
        before: what its process does first, with the arguments ``given``.
    """
    return start(_command, arguments, said, before, given)


def _command(arguments: list[str], said: Path, before: Callable[..., None] | None, given: tuple[object, ...]) -> None:
    os.setsid()
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    if before is not None:
        before(*given)
    from factsmith.flows.cli.main import main

    sys.argv = ["factsmith", *arguments]
    main()


def finish(arguments: list[str], **given: Any) -> float:
    """Run a command to its end, with the arguments of ``begin``. Returns the seconds that it took."""
    started = time.monotonic()
    process = begin(arguments, **given)
    process.join(600)
    assert process.exitcode == 0, arguments
    return time.monotonic() - started


def kill_at_random(campaign: Campaign, arguments: list[str], seconds: float, said: Path) -> None:
    """Run a command that takes so many seconds, kill it at a random moment, once or more, and then let it end.

    If it was killed after it had given a folder its name, it then says that the folder exists.

    Args:
        campaign: counts the kills.
        arguments: the words of the command.
        seconds: how long it takes.
        said: the file that its output goes to.
    """
    killed, ended = 0, False
    while not ended and (killed == 0 or campaign.random.random() < 0.5):
        process = begin(arguments, said)
        process.join(campaign.random.uniform(0, seconds))
        if ended := process.exitcode is not None:
            campaign.counts["ended before the kill"] += 1
        else:
            _kill(process)
            killed += 1
    campaign.counts["kills"] += killed
    if not ended:
        process = begin(arguments, said)
        process.join(600)
    if process.exitcode == 2 and killed and "got: an export" in said.read_text():
        campaign.counts["of them after the folder was complete"] += 1
    else:
        assert process.exitcode == 0, said.read_text()[-3000:]


def _kill(process: ForkServerProcess) -> None:
    """Kill a command and all that it has started. It cannot clean up."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # It has no group yet.
        process.kill()
    process.join()


def left(folder: Path) -> dict[str, str]:
    """The content of every artifact, and of every file that was written, without times and names of runs."""
    out = folder / "out"
    files = {str(path.relative_to(out)): _content(path) for path in sorted(out.rglob("*")) if path.is_file()}
    return contents(Store(folder / "home")) | files


def _content(path: Path) -> str:
    if path.suffix in (".json", ".md"):
        return _OF_A_RUN.sub("", path.read_text())
    return Checksums.read(path)
