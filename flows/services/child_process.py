"""Run a module as ``python -m`` does, and end with the parent process.

    python -m factsmith.flows.services.child_process PID MODULE [ARGUMENT ...]

Otherwise the children of a killed process would keep running, and would keep its output open for whoever reads it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from threading import Thread

__all__ = ["main"]

_SECONDS_BETWEEN_CHECKS = 1.0
_SECONDS_TO_END = 5.0


def main() -> None:
    """Run the module that ``sys.argv`` names, with its arguments."""
    parent, module, *arguments = sys.argv[1:]
    Thread(target=_end_after, args=(int(parent),), daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if os.getpgid(0) == os.getpid():  # What it has started itself is in its group.
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)
        time.sleep(_SECONDS_TO_END)


if __name__ == "__main__":
    main()
