"""The Prefect server of a run that has no other."""

from __future__ import annotations

import functools
import subprocess
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

__all__ = ["start_temporary_server"]


class _Server(SubprocessASGIServer):
    """Prefect's own, in a process group of its own.

    Ctrl-C reaches every process of a terminal's group. A server that ended by it before the run would leave the run
    trying, for minutes, to tell how it ended.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        popen = subprocess.Popen
        subprocess.Popen = functools.partial(popen, process_group=0)  # type: ignore[assignment, misc]
        try:
            return super()._run_uvicorn_command()
        finally:
            subprocess.Popen = popen  # type: ignore[misc]


def start_temporary_server() -> None:
    """Start a server for this process, unless Prefect knows one; it ends with the process."""
    if not PREFECT_API_URL.value():
        _Server().start()
