"""The workspace of a run: the artifact store, the runtime settings and the MLflow log."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.processes.signs_of_life import SignOfLife
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.markdown import markdown_table
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.settings import RuntimeSettings
from factsmith.tasks.pipeline.signals import deliver_lost_signals
from factsmith.tasks.tracking.dead_runs import alive
from factsmith.tasks.tracking.tracker import Tracker

__all__ = ["StageReport", "Workspace", "at_end_of_runs"]

_FLOP_PER_BYTE = 2_000
"""FLOP of a float64 decomposition on a GPU, at 2 TFLOP/s, in the time that reading a byte takes at 1 GB/s."""


@dataclass(frozen=True)
class StageReport:
    """The outcome of one stage.

    Attributes:
        name: the stage's name.
        state: ``built``; ``fetched`` if nothing was, and some came from ``runtime.mirror``; ``cached`` if the store
            already had everything.
        seconds: time taken.
        artifact: address of the artifact or series that the stage left in the store.
        metrics: what the stage measured: tokens, bytes, facts, ...; and ``memory`` and, on a GPU, ``gpu_memory``, the
            most memory in bytes that the process had used when the stage ended.
    """

    name: str
    state: str
    seconds: float
    artifact: str
    metrics: Mapping[str, float] = field(default_factory=dict)


class _Runs:
    """The runs of this process that are being logged, some within others, and what is to be done after the last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._begun = 0
        self._after = ExitStack()

    def at_end(self, close: Callable[[], None]) -> None:
        with self._lock:
            self._after.callback(close)

    @contextmanager
    def begun(self) -> Iterator[None]:
        with self._lock:
            self._begun += 1
        try:
            yield
        finally:
            with self._lock:
                self._begun -= 1
                after = self._after.pop_all() if not self._begun else ExitStack()
            after.close()


_runs = _Runs()


def at_end_of_runs(close: Callable[[], None]) -> None:
    """Call ``close`` once no run of this process goes on. Runs within a run, such as cells, share what it closes."""
    _runs.at_end(close)


class Workspace:
    """Where a run keeps its artifacts, how it computes, and where it is logged.

    A workspace is made where a run begins and is passed to every stage. It holds no input of the run.

    Args:
        store: the artifact store.
        runtime: device, memory and thread settings.

    Attributes:
        reports: the stages that have ended.
        flow_run: id of the flow run in Prefect whose page is the run's; ``None`` in a run without Prefect.
    """

    def __init__(self, store: Store, runtime: RuntimeSettings) -> None:
        self.store = store
        self.runtime = runtime
        self.reports: list[StageReport] = []
        self.flow_run: str | None = None
        self._tracker: Tracker | None = None
        self._sign: SignOfLife | None = None

    @property
    def begun(self) -> bool:
        """Whether logging of the run has begun."""
        return self._tracker is not None

    @property
    def tracker(self) -> Tracker:
        if self._tracker is None:
            raise RuntimeError("the run has not begun")
        return self._tracker

    @property
    def device(self) -> torch.device:
        """The device that linear algebra runs on: the only one, or the first of several.

        Raises:
            InputError: this machine has no such device.
        """
        return self.devices[0]

    @cached_property
    def devices(self) -> list[torch.device]:
        """The devices that the model runs on.

        Raises:
            InputError: this machine does not have one of them.
        """
        names = self.runtime.devices
        if names is None:
            return [_device(self.runtime.device, "runtime.device")]
        if names == "all":
            return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
        return [_device(name.strip(), "runtime.devices") for name in names.split(",")]

    def limit_threads(self) -> None:
        """Compute with ``runtime.threads`` threads from now on. Each Python thread has its own limit."""
        if threads := self.runtime.threads:
            torch.set_num_threads(threads)

    def can_hold(self, size: int) -> bool:
        """Whether results of ``size`` bytes may stay on the device until the next stage, which need not read them then.

        They stay until the run ends, so half of a GPU is left to what is computed meanwhile. On a CPU they are read
        from the file's pages, which are in memory anyway.
        """
        if self.device.type != "cuda":
            return False
        free, total = torch.cuda.mem_get_info(self.device)
        return 2 * size < free and torch.cuda.memory_allocated(self.device) + size < total / 2

    def is_worth_storing(self, flop: float, size: int) -> bool:
        """Whether to store a result of ``size`` bytes although ``flop`` FLOP make it again.

        On a GPU, it is only if they take longer than reading it. On a CPU, it always is.
        """
        return self.device.type != "cuda" or flop > _FLOP_PER_BYTE * size

    @property
    def made(self) -> dict[str, Any]:
        """How this run computes, for the manifests of its artifacts."""
        return {
            "device": ",".join(map(str, self.devices)),
            "threads": torch.get_num_threads(),
        }

    @property
    def memory_used(self) -> dict[str, float]:
        """The most memory that the process has used so far, in bytes: ``memory`` and, on a GPU, ``gpu_memory``.

        The latter is that of the first GPU, and counts what PyTorch allocated.
        """
        unit = 1 if sys.platform == "darwin" else 1024
        used = {"memory": float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}
        if self.device.type == "cuda":
            used["gpu_memory"] = float(torch.cuda.max_memory_allocated(self.device))
        return used

    def add(self, report: StageReport) -> None:
        """Add the report of a stage that has just ended."""
        self.reports.append(report)
        if self._sign is not None:
            self._sign.renew()

    @contextmanager
    def logged(
        self,
        name: str,
        *,
        flow: str,
        settings: Mapping[str, Any],
        experiment: str,
        note: str = "",
        parent: str | None = None,
    ) -> Iterator[None]:
        """Log a run to MLflow while its stages run.

        Args:
            name: the run's name.
            flow: the flow that starts it.
            settings: the run's settings, nested.
            experiment: the MLflow experiment.
            note: what the run does, in Markdown.
            parent: id of the MLflow run that this one is a part of.
        """
        deliver_lost_signals()
        with _runs.begun(), ExitStack() as life:
            # The lock lets only one of two simultaneous first runs create the database and the experiment.
            with self._resource_errors(), self.store.lock("mlflow"):
                tracker = Tracker(
                    self.store.root,
                    experiment=experiment,
                    name=name,
                    flow=flow,
                    settings=settings,
                    note=note,
                    parent=parent,
                )
                self._tracker = tracker
                self.flow_run = _flow_run()
                # The flow run is that of the whole. It goes on if the process of a part dies.
                known = {"uri": tracker.uri, "prefect": self.flow_run if parent is None else None}
                self._sign = life.enter_context(alive(self.store.root, tracker.run_id, known))
            try:
                yield
            except BaseException:
                with suppress(Exception):  # An error in logging must not hide the error that ended the run.
                    self._log_end(failed=True)
                raise
            with self._resource_errors():
                self._log_end(failed=False)

    def _resource_errors(self) -> Any:
        return resource_errors("Logging the run", self.store.root, self.runtime)

    def _log_end(self, *, failed: bool) -> None:
        artifacts = {f"artifact.{report.name}": report.artifact for report in self.reports}
        tracker = self.tracker
        if self.reports:
            tracker.note(f"Artifacts in `{self.store.where}`, in the order of the stages:")
            rows = [(report.name, report.state, f"`{report.artifact}`") for report in self.reports]
            tracker.note(markdown_table(["stage", "state", "artifact"], rows))
        tracker.end(
            failed=failed,
            metrics={f"seconds/{report.name}": report.seconds for report in self.reports},
            tags={**artifacts, **{f"state.{report.name}": report.state for report in self.reports}},
        )
        if self._sign is not None:
            self._sign.remove()  # If logging fails, it stays, and the next command marks the run.


def _device(name: str, setting: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"There is no device {name!r} here.", got=str(error).splitlines()[0], remedy=f"set {setting}"
        ) from None
    return device


def _flow_run() -> str | None:
    """The id of the flow run in Prefect."""
    from prefect.runtime import flow_run

    return str(flow_run.id) if flow_run.id else None
