"""The Prefect server of a run that has no other."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

__all__ = ["start_temporary_server"]


class _Server(SubprocessASGIServer):
    """Prefect's own, which ends when this process does, and not before.

    Ctrl-C reaches every process of a terminal's group. A server that ended by it before the run would leave the run
    trying, for minutes, to tell how it ended: it has a group of its own. A run that is killed cannot end its server:
    the server looks whether the run is there.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        popen = subprocess.Popen

        def watched(args: list[str], **given: Any) -> subprocess.Popen[Any]:
            python, dash_m, *module = args
            return popen(
                [python, dash_m, "factsmith.flows.services.child_process", str(os.getpid()), *module],
                process_group=0,
                **given,
            )

        subprocess.Popen = watched  # type: ignore[assignment, misc]
        try:
            return super()._run_uvicorn_command()
        finally:
            subprocess.Popen = popen  # type: ignore[misc]


def start_temporary_server() -> None:
    """Start a server for this process, unless Prefect knows one; it ends with the process, however that ends."""
    if not PREFECT_API_URL.value():
        _Server().start()
