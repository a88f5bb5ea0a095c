"""The cells of a sweep, checked before any of them runs, and the models that they share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose_cell
from factsmith.flows.configuration.grid import Cell, Grid, read_grid
from factsmith.flows.configuration.unread import refuse_unread, unread
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.preflight import check_input, check_preservation
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings

__all__ = ["RunPool", "Sweep", "open_sweep"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A sweep whose input has been checked.

    Attributes:
        grid: its axes.
        cells: the cells and their settings, in the order of the axes.
        refused: why some cells cannot run, by the index of the cell.
        jobs: number of cells to run at once.
        arguments: what the user gave.
    """

    grid: Grid
    cells: list[tuple[Cell, Settings]]
    refused: dict[int, str]
    jobs: int
    arguments: Sequence[str]


def open_sweep(arguments: Sequence[str], *, jobs: int = 1, memory_mb: int | None = None) -> Sweep:
    """Check everything that the user gave before anything is written.

    Args:
        arguments: choices and settings, as for ``read_grid``.
        jobs: most cells to run at once.
        memory_mb: memory for all cells that run at once, in MiB. If ``jobs`` cells would need more, fewer run at once.

    Raises:
        InputError: an argument is not understood, or no cell can run.
    """
    grid = read_grid(arguments)
    cells: list[tuple[Cell, Settings]] = []
    unused: list[set[str]] = []
    for cell in grid.cells:
        settings, names = compose_cell(cell.arguments)
        cells.append((cell, settings))
        unused.append(set(names))
    if common := sorted(set.intersection(*unused) - set(grid.varied)):
        refuse_unread(common, cells[0][1])
    faults: dict[str, InputError | None] = {}
    refused: dict[int, InputError] = {}
    needed = 0
    pool = RunPool(Store(home()))
    for place, (cell, settings) in enumerate(cells):
        with pool.borrow(settings) as run:
            checked = _checked_settings(settings)
            if checked not in faults:
                faults[checked] = _fault(partial(check_input, run, dataset=True, sizes=False))
            error = faults[checked] or _fault(partial(check_preservation, run))
            if error := error or _without_effect(unused[place] & set(cell.place), settings):
                refused[place] = error
            elif memory_mb is not None:
                needed = max(needed, *(stage.memory for stage in plan(run)))
    if len(refused) == len(cells):
        raise refused[0]
    if jobs > 1 and any(settings.method.value.tf32 for _, settings in cells):
        logger.warning("method.value.tf32 holds for all cells that run at once: they run one after the other")
        jobs = 1
    if memory_mb is not None and needed:
        fitting = memory_mb * 2**20 // needed
        if fitting < jobs:
            logger.warning(
                "%d cells at once would need %s MiB of memory: at most %d run at once",
                jobs,
                f"{jobs * needed / 2**20:,.0f}",
                max(1, fitting),
            )
        jobs = max(1, min(jobs, fitting))
    return Sweep(grid, cells, {place: str(error) for place, error in refused.items()}, jobs, arguments)


class RunPool:
    """Runs that cells borrow, one cell at a time, so that cells share models. Models of earlier cells are dropped.

    Args:
        store: the artifact store.
        apart: whether cells run at the same time. Each then has one of several ``runtime.devices`` to itself, or with
            the fewest others. A cell that runs alone has all of them.
    """

    def __init__(self, store: Store, *, apart: bool = False) -> None:
        self._store = store
        self._apart = apart
        self._lock = Lock()
        self._free: dict[tuple[str, str], list[Run]] = {}
        self._cells: Counter[str] = Counter()

    @contextmanager
    def borrow(self, settings: Settings) -> Iterator[Run]:
        """Lend a run with ``settings``. No other cell uses its model until the context ends."""
        model = settings.model_dump_json(include={"model", "runtime"})
        with self._lock:
            placed = self._placed(settings)
            key = model, placed.runtime.device
            self._free = {place: runs for place, runs in self._free.items() if place[0] == model}
            free = self._free.setdefault(key, [])
            lender = free.pop() if free else Run(placed, self._store)
            self._cells[placed.runtime.device] += 1
        try:
            yield lender.variant(placed)
        finally:
            with self._lock:
                self._free.setdefault(key, []).append(lender)
                self._cells[placed.runtime.device] -= 1

    def _placed(self, settings: Settings) -> Settings:
        """The settings with one of several devices, if cells run at the same time."""
        runtime = settings.runtime
        if not self._apart or runtime.devices is None:
            return settings
        names = map(str, Workspace(self._store, runtime).devices)
        chosen = min(names, key=lambda name: self._cells[name])
        return settings.model_copy(update={"runtime": runtime.model_copy(update={"device": chosen, "devices": None})})


def _checked_settings(settings: Settings) -> str:
    """The settings that decide whether input can be used. Cells that differ only in other settings are checked once."""
    value = set(type(settings.method.value).model_fields) - {"site", "attention", "tf32"}
    numbers = {"preservation_weight", "ridge", "slack", "slack_of_one", "spread", "clean_weight", "context_seed"}
    numbers |= {"low_rank", "null_space", "rect", "prune", "simie"}
    tokens = {"dynamic_multiplier", "tokens", "key_dtype", "keep_keys", "auto"}
    return settings.model_dump_json(
        exclude={"corpus": tokens, "method": {**dict.fromkeys(numbers, True), "value": value}}
    )


def _without_effect(names: Iterable[str], settings: Settings) -> InputError | None:
    """An error if a cell does not read a setting that varies, because it would then be the same as another cell."""
    return next((unread(name, settings) for name in sorted(names)), None)


def _fault(check: Callable[[], None]) -> InputError | None:
    try:
        check()
    except InputError as error:
        return error
    return None
