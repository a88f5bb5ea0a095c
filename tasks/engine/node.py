"""A process on a node of a cluster: what it needs, the settings that it has, and the folder that it must see."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.tasks.pipeline.settings import RuntimeSettings

__all__ = ["check_sees", "own_runtime", "resources"]

_SECONDS_TO_SEE = 10.0
"""How long a file of another machine may take to be seen in a shared folder. NFS remembers what is not there."""


def resources(ray: Any, runtime: RuntimeSettings, memory: Callable[[], int]) -> dict[str, float]:
    """What a process needs, by Ray's names of resources.

    Args:
        ray: the module, connected.
        runtime: the runtime settings of the run.
        memory: gives the bytes that it needs unless ``runtime.ray.memory_mb`` says so.
    """
    settings, gpus = runtime.ray, runtime.ray.gpus
    if gpus is None:
        gpus = 0 if runtime.device == "cpu" else min(1, ray.cluster_resources().get("GPU", 0))
    return {"CPU": settings.cpus, "GPU": gpus, "memory": settings.memory_mb * 2**20 if settings.memory_mb else memory()}


def own_runtime(runtime: RuntimeSettings, **given: Any) -> RuntimeSettings:
    """The runtime settings of the process itself, which has no workers, with those that are ``given``."""
    kept = runtime.model_dump(exclude={"engine", "ray"})
    threads = runtime.threads or max(1, int(runtime.ray.cpus))
    return RuntimeSettings.model_validate(kept | {"threads": threads} | given)


def check_sees(root: Path, mark: str) -> None:
    """Check, in the process, that the node sees the folder of the store.

    Args:
        root: the folder.
        mark: a file in it that the driver has made.

    Raises:
        InputError: it does not.
    """
    until = time.monotonic() + _SECONDS_TO_SEE
    while not (root / mark).exists():
        if time.monotonic() > until:
            raise InputError(
                f"A worker does not see the store {root}.",
                got=f"no such file on {os.uname().nodename}: {root / mark}",
                expected="a folder that all nodes share at the same path",
                remedy="set FACTSMITH_HOME to one",
            )
        time.sleep(0.2)
