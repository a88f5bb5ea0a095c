"""The workers of a run: their pool, as the driver sees it, and what each of them has in its process."""

from __future__ import annotations

import atexit
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.manifest import code_versions
from factsmith.artifacts.processes.signs_of_life import dead, sign_of_life
from factsmith.artifacts.remote.shared.opening import store_at
from factsmith.tasks.engine.cluster import check_engine, connected
from factsmith.tasks.engine.node import check_sees, own_runtime, resources
from factsmith.tasks.engine.pool import Pool
from factsmith.tasks.model.cost import model_cost
from factsmith.tasks.model.gguf_stage import open_chosen
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.model.settings import ModelSettings
from factsmith.tasks.pipeline.environment import disable_telemetry
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.settings import RuntimeSettings
from factsmith.tasks.pipeline.workspace import Workspace, at_end_of_runs

__all__ = ["Worker", "connect_if_elsewhere", "workers"]

_SPARE_MEMORY = 2 * 2**30
"""Bytes that a worker has beside the weights: Python with its libraries, and the activations of a pass."""


# ------------------------------------------------------------------------------------------------ in a worker's process


@dataclass(frozen=True)
class _Job:
    """What a worker is made from.

    Attributes:
        root: folder of the store.
        url: the URL of the store if it is shared at one.
        mark: file in the folder that the driver has made.
        runtime: the runtime settings of the worker.
        model: the settings of the model.
        blocks: the first blocks of it, if no more is needed.
        fingerprint: the model as the driver knows it.
        versions: versions of the driver's packages.
    """

    root: Path
    url: str | None
    mark: str
    runtime: RuntimeSettings
    model: ModelSettings
    blocks: int | None
    fingerprint: Fingerprint
    versions: Mapping[str, str]


class Worker:
    """The store and the model, in the process of a worker.

    Args:
        job: what it is made from.

    Attributes:
        workspace: the store and the runtime settings.
        model: the model, loaded when a work first needs it.

    Raises:
        InputError: the node does not share the store or the model, or has other packages.
    """

    def __init__(self, job: _Job) -> None:
        disable_telemetry()
        self._check_versions(job.versions)
        check_sees(job.root, job.mark)
        self.workspace = Workspace(store_at(job.root, job.url, progress), job.runtime)
        self.workspace.limit_threads()
        checkpoint = open_chosen(self.workspace, job.model)
        checksums = self.workspace.store.checksums.sha256_all
        self.model = Model(checkpoint, job.model, job.runtime, self.workspace.devices, checksums)
        if job.blocks is not None:
            self.model.needs_only(job.blocks)
        if self.model.fingerprint != job.fingerprint:
            raise InputError(
                f"A worker finds another model at {job.model.path}.",
                got=self.model.fingerprint,
                expected=job.fingerprint,
                remedy="give every node the same folder, or the same revision of the hub",
            )

    @property
    def about(self) -> dict[str, Any]:
        device = self.workspace.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"device": name, **asdict(self.model.limits)}

    def errors(self) -> AbstractContextManager[None]:
        self.workspace.limit_threads()  # Each thread has its own limit.
        return resource_errors("A worker", self.workspace.store.root, self.workspace.runtime)

    @staticmethod
    def _check_versions(expected: Mapping[str, str]) -> None:
        found = code_versions()
        for name, version in expected.items():
            if found.get(name) != version:
                raise InputError(
                    f"A worker has another version of {name}: results would depend on who made them.",
                    got=found.get(name),
                    expected=version,
                    remedy="install the same packages on every node",
                )


# ------------------------------------------------------------------------------------------------- in the driver's


_pools: dict[str, Pool] = {}
_connection = ExitStack()
_ray: Any = None
_lock = Lock()


def workers(workspace: Workspace, model: Model) -> Pool | None:
    """The workers of a run with ``model``; ``None`` if the run computes in this process.

    Runs of this process with the same model and settings share them. They end with the last of these runs.

    Raises:
        InputError: Ray is not installed, cannot be reached, or settings contradict each other.
    """
    if workspace.runtime.engine != "ray":
        return None
    ray = _connect(workspace.runtime)
    settings = workspace.runtime.ray
    name = repr((workspace.store.root, workspace.runtime, model.settings, model.needed_blocks))
    with _lock:
        if name not in _pools:
            need = _need(ray, workspace.runtime, model)
            device = "cuda" if need.get("GPU") else "cpu"
            runtime = own_runtime(workspace.runtime, device=device)
            upstream = workspace.store.upstream
            workspace.store.check_writable()
            mark = _connection.enter_context(_marked(workspace.store.root))
            job = _Job(
                workspace.store.root, upstream.url if upstream else None, mark, runtime, model.settings,
                model.needed_blocks, model.fingerprint,
                {name: one for name, one in code_versions().items() if name in ("factsmith", "torch", "transformers")},
            )  # fmt: skip
            patience = 0 if settings.address == "local" else settings.wait_seconds  # This machine does not grow.
            _pools[name] = Pool(ray, partial(Worker, job), need, settings.workers, patience)
        return _pools[name]


@contextmanager
def _marked(root: Path) -> Iterator[str]:
    """Make a file in the folder ``root`` of the store, for ``check_sees``. Gives its path in the folder.

    Files of processes that were killed are removed.
    """
    for left in dead(root / "locks"):
        left.remove()
    with sign_of_life(root / (mark := f"locks/workers-{uuid.uuid4().hex}.json"), {}) as sign:
        try:
            yield mark
        finally:
            sign.remove()


def connect_if_elsewhere(workspace: Workspace) -> None:
    """Connect to a cluster that should be there. Ray on this machine is started when a stage needs it.

    Raises:
        InputError: as ``workers``; or the store is shared at a URL, and workers elsewhere do not see this machine's
            copies.
    """
    runtime, upstream = workspace.runtime, workspace.store.upstream
    if runtime.engine != "ray" or runtime.ray.address == "local":
        return
    if upstream is not None:
        raise InputError(
            "Workers of a cluster share a folder with the run.",
            got=f"FACTSMITH_HOME={upstream.url} and runtime.ray.address={runtime.ray.address}",
            remedy="set FACTSMITH_HOME to a folder that all nodes mount; `factsmith store push` then copies what was "
            f"made to {upstream.url}",
        )
    _connect(runtime)


def _connect(runtime: RuntimeSettings) -> Any:
    """Connect to Ray, if this process is not connected yet, until its last run ends. Returns the module ``ray``.

    Raises:
        InputError: as ``workers``.
    """
    global _ray  # noqa: PLW0603
    with _lock:
        if _ray is None:
            check_engine(runtime)
            _ray = _connection.enter_context(connected(runtime.ray))
            at_end_of_runs(_disconnect)
        return _ray


@atexit.register
def _disconnect() -> None:
    global _ray  # noqa: PLW0603
    with _lock:
        for pool in _pools.values():
            pool.close()
        _pools.clear()
        _connection.close()
        _ray = None


def _need(ray: Any, runtime: RuntimeSettings, model: Model) -> dict[str, float]:
    """What a worker needs, by Ray's names of resources."""

    def memory() -> int:
        item = getattr(torch, model.dtype).itemsize
        return int(item * model_cost(model.checkpoint).parameters + _SPARE_MEMORY)

    return resources(ray, runtime, memory)
