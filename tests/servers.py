"""Servers and other commands that run while a test looks at them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

__all__ = ["clean_environment", "free_ports", "started", "until"]


@contextmanager
def started(arguments: list[str], log: Path, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards, and with it whatever it began."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=output, stderr=output, start_new_session=True, **more
        )
    try:
        yield process
    except BaseException:
        print(log.read_text())
        raise
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)


def until(answer: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 240) -> Any:
    """The first answer that is not empty."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"it ended with {process.returncode}"
        with suppress(httpx.TransportError, httpx.HTTPStatusError):
            if found := answer():
                return found
        time.sleep(0.5)
    pytest.fail(f"nothing within {seconds} seconds")


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what it says to Prefect, Factsmith and MLflow, and with ``more``."""
    foreign = ("PREFECT_", "FACTSMITH_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]
