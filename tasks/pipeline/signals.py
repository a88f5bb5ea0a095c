"""A signal that asks a process to stop is never lost.

Handlers of signals raise an exception wherever the main thread is. If that is in a finaliser (``__del__``, or a
callback of a weak reference), Python prints the exception and drops it, and the run would go on. Python reports what it
drops to ``sys.unraisablehook``. The signal is then sent again, a moment later, until it arrives.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from typing import Any

__all__ = ["Terminated", "deliver_lost_signals"]

_MOMENT = 0.05
"""Seconds to wait. The finaliser should have ended by then; otherwise the signal is lost and sent once more."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""

    signal = signal.SIGTERM


def deliver_lost_signals() -> None:
    """From now on, send signals again that were lost in a finaliser."""
    if getattr(sys.unraisablehook, "__name__", "") == _hook_name:
        return
    report = sys.unraisablehook

    def send_again(dropped: Any) -> None:
        number = _signal_of(dropped.exc_value)
        if number is None:
            report(dropped)
        else:  # Not ``threading.Thread``: its locks may be held where the finaliser ran.
            _thread.start_new_thread(_send, (number,))

    send_again.__name__ = _hook_name
    sys.unraisablehook = send_again


_hook_name = "send_lost_signal_again"


def _send(number: int) -> None:
    time.sleep(_MOMENT)
    os.kill(os.getpid(), number)


def _signal_of(error: BaseException | None) -> int | None:
    """The signal whose handler raised ``error``: that of `factsmith`, of Prefect, or of Python for Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "signal", signal.SIGINT))
    if type(error).__name__ == "TerminationSignal":  # Prefect's, which need not be imported
        return int(getattr(error, "signal", signal.SIGTERM))
    return None
