"""What a run ran on: machine, device, packages, code."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from factsmith.artifacts.manifest import code_versions
from factsmith.flows.html.blocks import Section
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["environment"]

_SERVICES = ("mlflow", "prefect")
"""Packages that log a run, and compute nothing."""


def environment(workspace: Workspace) -> Section:
    """Date, machine, device, threads, versions, and the commit of the code if it runs in a checkout."""
    made = workspace.made
    rows = {
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "run in MLflow": workspace.tracker.run_id,
        "device": ", ".join(map(_device, workspace.devices)),
        "threads": str(made["threads"]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        **({"commit": commit} if (commit := _commit()) else {}),
        **code_versions(),
        **{name: _version(name) for name in _SERVICES},
    }
    table = TextTable("", ["", ""], labels=2, rows=[[name, text] for name, text in rows.items()])
    return Section("Environment", [table])


def _device(device: torch.device) -> str:
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"


@cache
def _commit() -> str:
    """The commit of the code, marked if files differ from it; empty if it does not run in a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
