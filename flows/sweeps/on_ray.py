"""Cells of a sweep on a Ray cluster: one actor for each cell that runs at a time, which keeps its model.

An actor declares the CPUs, the GPUs and the memory of its cells, so that Ray finds a node with room for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.grid import Cell
from factsmith.flows.reporting.sweeps.reports import CellReport
from factsmith.flows.sweeps.cell import Cells
from factsmith.tasks.engine.actor import Answer
from factsmith.tasks.engine.cluster import connected, places
from factsmith.tasks.engine.node import check_sees, own_runtime, resources
from factsmith.tasks.pipeline.environment import prepare_command_line
from factsmith.tasks.pipeline.settings import RaySettings, RuntimeSettings
from factsmith.tasks.planning.settings import Settings

__all__ = ["on_ray"]

_LONGEST_WAIT = 1.0
"""Longest single wait for a cell, in seconds, so that Ctrl-C is not missed."""

_PASSED_ON = ("MLFLOW_TRACKING_URI", "HF_HOME", "HF_HUB_OFFLINE")
"""Variables of the environment that cells have wherever they run, if the sweep has them."""


class _CellActor:
    """Runs cells in a process of Ray.

    Args:
        cells: runs them.
        mark: file in the store's folder that the sweep has made.
        environment: variables that the process of the sweep has.
    """

    def __init__(self, cells: Cells, mark: str, environment: Mapping[str, str]) -> None:
        self._cells = cells
        self._mark = mark
        self._environment = environment
        self._open = ExitStack()
        self._run: Callable[[tuple[Cell, Settings]], CellReport] | None = None

    def run(self, cell: Cell, settings: Settings) -> Answer:
        """Run one cell. The answer is its report, or an ``InputError`` if the node does not see the store."""
        return Answer.of(lambda: self._begun()((cell, _for_one_process(settings))))

    def _begun(self) -> Callable[[tuple[Cell, Settings]], CellReport]:
        if self._run is None:
            os.environ.update(self._environment)
            prepare_command_line()
            check_sees(self._cells.home, self._mark)
            self._run = self._open.enter_context(self._cells.elsewhere(0))
        return self._run


def _for_one_process(settings: Settings) -> Settings:
    """The settings of a cell that is computed by one actor: on what Ray has given it."""
    return settings.model_copy(update={"runtime": own_runtime(settings.runtime)})


def on_ray(
    runtime: RuntimeSettings,
    cells: Cells,
    mark: str,
    choose: Callable[[int], tuple[Cell, Settings] | None],
    *,
    most: int,
    memory: int,
) -> Generator[tuple[int, CellReport | str], None, None]:
    """Run cells on a cluster. Yields the number of an actor and the report of its cell, or why it died.

    Args:
        runtime: the runtime settings of the sweep.
        cells: runs a cell.
        mark: file in the store's folder by which actors know that they see it.
        choose: gives the next cell of the actor with that number; ``None`` if none is left.
        most: most cells at once. Fewer run if the cluster has no room for more.
        memory: bytes that a cell needs, unless ``runtime.ray.memory_mb`` says so.

    Raises:
        InputError: the cluster cannot be reached, has no room for a cell, or its nodes do not see the store.
    """
    settings = runtime.ray
    with connected(settings) as ray, ExitStack() as actors:
        need = resources(ray, runtime, lambda: memory)
        room = _room(ray, need, settings)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"FACTSMITH_HOME": cells.url or str(cells.home), "FACTSMITH_CACHE": str(cells.home)}
        kind = ray.remote(_CellActor).options(
            num_cpus=need["CPU"],
            num_gpus=need["GPU"],
            memory=int(need["memory"]),
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        running: dict[Any, tuple[int, Any]] = {}

        def give(number: int, actor: Any = None) -> None:
            if (work := choose(number)) is None:
                return
            if actor is None:
                actor = kind.remote(cells, mark, environment)
                actors.callback(_kill, ray, actor)
            running[actor.run.remote(*work)] = number, actor

        for number in range(min(most, room)):
            give(number)
        while running:
            for call in ray.wait(list(running), timeout=_LONGEST_WAIT)[0]:
                number, actor = running.pop(call)
                try:
                    answer: Answer = ray.get(call)
                except ray.exceptions.RayTaskError:
                    raise  # a bug of ours
                except ray.exceptions.RayError as error:
                    actor = None
                    yield number, _why(error)
                else:
                    yield number, answer.get()
                give(number, actor)


def _kill(ray: Any, actor: Any) -> None:
    with suppress(Exception):  # It, or the cluster, may be gone.
        ray.kill(actor)


def _why(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if "exit" in line.lower()), str(error).strip())


def _room(ray: Any, need: dict[str, float], settings: RaySettings) -> int:
    """How many actors the cluster has room for. Waits for a cluster that grows.

    Raises:
        InputError: no node has room for one.
    """
    until = time.monotonic() + settings.wait_seconds
    while not (room := places(ray, need)[0]):
        if time.monotonic() > until:
            raise InputError(
                "No node of the cluster has room for a cell.",
                got=f"a cell needs {need['CPU']:g} CPUs, {need['GPU']:g} GPUs and {need['memory'] / 2**20:,.0f} MiB",
                remedy="lower runtime.ray.cpus, runtime.ray.gpus or runtime.ray.memory_mb, or add nodes; "
                "runtime.ray.wait_seconds waits for a cluster that grows",
            )
        time.sleep(_LONGEST_WAIT)
    return room
