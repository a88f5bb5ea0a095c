"""What the device of a run is called."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

__all__ = ["device_name"]


def device_name(device: torch.device, threads: int | None) -> str:
    """The name of a device, as its rates are called.

    Args:
        device: the device.
        threads: CPU threads; ``None`` for as many as PyTorch takes.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, threads: {threads or torch.get_num_threads()}"


def _processor() -> str:
    """The name of this machine's CPU."""
    about = Path("/proc/cpuinfo")
    for line in about.read_text(errors="replace").splitlines() if about.is_file() else []:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
