"""Run a module, as ``python -m`` does, for as long as the process that asked for it lives.

    python -m factsmith.flows.services.child_process PID MODULE [ARGUMENT ...]

Nothing else ends what a killed process has started; and it would keep that process's output open for whoever reads it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from threading import Thread

__all__ = ["main"]

_BETWEEN_LOOKS = 1.0
_TO_END = 5.0
"""Seconds."""


def main() -> None:
    """Of ``python -m``."""
    parent, module, *arguments = sys.argv[1:]
    Thread(target=_end_after, args=(int(parent),), daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_TO_END)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
