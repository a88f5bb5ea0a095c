"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from factsmith.artifacts.errors import InputError, first_line
from factsmith.tasks.pipeline.environment import disable_telemetry
from factsmith.tasks.pipeline.settings import RaySettings, RuntimeSettings

__all__ = ["check_engine", "connected", "places"]

_SECONDS_TO_ANSWER = 5.0
_OBJECT_STORE = 100 * 2**20
"""Bytes of the object store of a Ray that we start. Only addresses travel, so it stays almost empty."""


_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray reads this when it is imported. Its processes then use 127.0.0.1, as they always do on Windows and macOS."""


def check_engine(runtime: RuntimeSettings) -> None:
    """Check what is known about the engine before anything is connected or started.

    Raises:
        InputError: Ray is not installed, or settings contradict each other.
    """
    if runtime.engine != "ray":
        return
    settings = runtime.ray
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "runtime.engine=ray needs Ray, which is not installed.", remedy="run `pip install 'factsmith[ray]'`"
        )
    if settings.gpus is not None and settings.gpus > 1 and runtime.device_map is None:
        raise InputError(
            "A worker has several GPUs only for a model that is spread over them.",
            got=f"runtime.ray.gpus={settings.gpus:g}",
            remedy="set runtime.device_map=auto, or runtime.ray.gpus=1 and more runtime.ray.workers",
        )
    for name, amount in (("cpus", settings.cpus), ("gpus", settings.gpus or 0)):
        if amount > 1 and amount % 1:
            raise InputError(
                f"Ray divides only one of the {name} of a node among workers.",
                got=f"runtime.ray.{name}={amount:g}",
                expected="a whole number, or less than 1",
            )
    if settings.gpus and runtime.device == "cpu":
        raise InputError(
            "Workers that compute on CPUs need no GPU.",
            got=f"runtime.device=cpu and runtime.ray.gpus={settings.gpus:g}",
            remedy="leave out one of them",
        )


@contextmanager
def connected(settings: RaySettings) -> Iterator[Any]:
    """Be connected to Ray in this context. Yields the module ``ray``.

    A Ray that we start listens on 127.0.0.1, without a dashboard, and ends with the context. A cluster that was there
    stays, and so does a connection that the caller of this process has made.

    Raises:
        InputError: the address cannot be reached.
    """
    disable_telemetry()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray would warn of a later default otherwise.
    if settings.address == "local":
        os.environ |= _ALONE
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield ray
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with ExitStack() as after:
        given: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if settings.address == "local":
            folder = after.enter_context(tempfile.TemporaryDirectory(prefix="factsmith-", ignore_cleanup_errors=True))
            cpus = settings.cpus * settings.workers if settings.workers else None
            given |= {
                "num_cpus": None if cpus is None else math.ceil(cpus),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        else:
            _check_answers(settings.address)
        try:
            ray.init(settings.address, **given)
        except Exception as error:  # Each cause has a class of its own: ConnectionError, RuntimeError, ValueError, ...
            with suppress(Exception):
                ray.shutdown()
            got = f"runtime.ray.address={settings.address}: {first_line(error)}"
            if settings.address == "local":
                raise InputError(
                    "Ray cannot be started.",
                    got=got,
                    remedy="try again, or start one with `ray start --head` and set runtime.ray.address=auto",
                ) from None
            raise InputError(
                "Ray cannot be reached.",
                got=got,
                expected="the address of a cluster with the same versions of Ray and Python",
                remedy="start one with `ray start --head`, or set runtime.ray.address=local",
            ) from None
        after.callback(ray.shutdown)
        after.enter_context(_quiet(ray))
        if threading.current_thread() is threading.main_thread():  # Ray replaces them.
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray does not print what it says about nodes and processes. It would go to stdout, where results are."""
    worker = ray._private.worker
    before = getattr(worker, "_worker_logs_enabled", True)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


def _check_answers(address: str) -> None:
    """Ray's own attempts take half a minute.

    Raises:
        InputError: nothing listens at ``address``.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # ``auto``: Ray looks for a cluster of this machine.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise InputError(
            "Ray cannot be reached.",
            got=f"runtime.ray.address={address}: {error.strerror or error}",
            expected="the address of the head of a cluster that runs",
            remedy="start one with `ray start --head`, or set runtime.ray.address=local",
        ) from None


def places(ray: Any, need: Mapping[str, float]) -> tuple[int, list[dict[str, float]]]:
    """How many workers the nodes have room for if nothing else runs there, and the resources of each node.

    Args:
        ray: the module, connected.
        need: what a worker needs, by Ray's names of resources.
    """
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    wanted = {name: amount for name, amount in need.items() if amount}
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in wanted.items())) for node in nodes), nodes
