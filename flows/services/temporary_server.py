"""A temporary Prefect server, for runs on a machine without a permanent one."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

__all__ = ["start_temporary_server"]


class _Server(SubprocessASGIServer):
    """Prefect's own server, which ends when this process ends, and not before.

    Ctrl-C reaches every process of a terminal's group. If it ended the server before the run, the run would try for
    minutes to report its end, so the server has a process group of its own. A run that is killed cannot end its server,
    so the server checks whether the run is alive.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        popen = subprocess.Popen

        def start_as_child(args: list[str], **given: Any) -> subprocess.Popen[Any]:
            python, dash_m, *module = args
            return popen(
                [python, dash_m, "factsmith.flows.services.child_process", str(os.getpid()), *module],
                process_group=0,
                **given,
            )

        subprocess.Popen = start_as_child  # type: ignore[assignment, misc]
        try:
            return super()._run_uvicorn_command()
        finally:
            subprocess.Popen = popen  # type: ignore[misc]


def start_temporary_server() -> None:
    """Start a server for this process, unless ``PREFECT_API_URL`` names one. It ends with the process in any case."""
    if not PREFECT_API_URL.value():
        _Server().start()
