"""Which machine this is, for files that several machines see."""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["machine"]


@cache
def machine() -> str:
    """A name for this machine since it was started: its host name and the kernel's boot id."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()
