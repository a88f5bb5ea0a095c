"""A temporary Prefect server, for commands on a machine without a permanent one.

This module does not import Prefect, so that the server can start before the command imports it.
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from factsmith.artifacts.signs_of_life import living
from factsmith.tasks.pipeline.environment import SERVED

__all__ = ["prepare_temporary_server", "release_temporary_server", "served_address", "server_address"]

_SECONDS_TO_START = 180.0
"""The first start migrates a database, which can take long on a busy machine."""


class _Process:
    """The process of the server, which ends when this process ends, and not before.

    Ctrl-C reaches every process of a terminal's group. If it ended the server before the run, the run would try for
    minutes to report its end, so the server has a process group of its own. A run that is killed cannot end its server,
    so the server checks whether the run is alive.
    """

    def __init__(self) -> None:
        module = "factsmith.flows.services.prefect_process"
        no_page = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "factsmith.flows.services.child_process", str(os.getpid()), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            env={**os.environ, **no_page},
        )
        self._released = False
        atexit.register(self.stop)

    def release(self) -> None:
        """Let it serve. It makes its database first, which takes seconds."""
        assert self._process.stdin is not None
        if not self._released:
            with suppress(BrokenPipeError):
                self._process.stdin.write("serve\n")
                self._process.stdin.flush()
        self._released = True

    def serve(self) -> str:
        """Let it serve, and wait until it does. Returns its address."""
        self.release()
        process = self._process
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], _SECONDS_TO_START)
        port = process.stdout.readline().strip() if readable else ""
        if not port:
            self.stop()
            raise RuntimeError("The temporary Prefect server did not start.")
        return f"http://127.0.0.1:{port}/api"

    def stop(self) -> None:
        """End it. A server that serves gets a few seconds."""
        atexit.unregister(self.stop)
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


_prepared: list[_Process] = []


def prepare_temporary_server(home: Path) -> None:
    """Start the process of a server that will probably be needed. It writes nothing before it is released."""
    prefect_is_here = "prefect" in sys.modules  # in a process that has run flows before, and may have a server
    if not (_prepared or prefect_is_here or os.environ.get("PREFECT_API_URL") or served_address(home)):
        _prepared.append(_Process())


def release_temporary_server() -> None:
    """Let the prepared server start to serve, once the command's input has been checked."""
    for process in _prepared:
        process.release()


def server_address(home: Path) -> str | None:
    """The address of the server for this process: that of `factsmith serve` in the same home, or of a temporary one.

    ``None`` if Prefect's settings name one, such as ``PREFECT_API_URL``. A temporary one ends with this process.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        if served := served_address(home):
            return served
        if not _prepared:
            _prepared.append(_Process())
        return _prepared.pop().serve()
    while _prepared:
        _prepared.pop().stop()
    return None


def served_address(home: Path) -> str | None:
    """The address of the Prefect server of `factsmith serve`, if it runs in this home."""
    api: str | None = (living(home / SERVED) or {}).get("api")
    return api
