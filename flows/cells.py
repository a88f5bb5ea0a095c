"""The cells of a sweep, looked at before any of them runs, and the models that they share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.configuration.grid import MULTIPLIER, Cell, Grid, read_grid
from factsmith.tasks.pipeline.paths import home
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.preflight import check_input
from factsmith.tasks.planning.settings import Settings

__all__ = ["Benches", "Sweep", "open_sweep"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A sweep whose input has been looked at.

    Attributes:
        grid: its axes.
        cells: with their settings, in the order of the axes.
        refused: why a cell cannot run, by its place among them.
        jobs: cells that run at once.
    """

    grid: Grid
    cells: list[tuple[Cell, Settings]]
    refused: dict[int, str]
    jobs: int


def open_sweep(words: Sequence[str], *, jobs: int = 1, memory_mb: int | None = None) -> Sweep:
    """Look at everything the user gave before anything is written.

    Args:
        words: of ``read_grid``.
        jobs: cells that may run at once.
        memory_mb: of all cells that run at once; fewer do if they would need more.

    Raises:
        InputError: a word is not understood, or no cell can run.
    """
    grid = read_grid(words)
    cells = [(cell, compose(cell.words)) for cell in grid.cells]
    looked: dict[str, InputError | None] = {}
    refused: dict[int, InputError] = {}
    needed = 0
    benches = Benches(Store(home()))
    for place, (cell, settings) in enumerate(cells):
        with benches.lent(settings) as bench:
            alike = _what_is_looked_at(settings)
            if alike not in looked:
                looked[alike] = _fault(bench)
            if error := looked[alike] or _same_tokens(cell, settings):
                refused[place] = error
            elif memory_mb is not None:
                needed = max(needed, *(stage.memory for stage in plan(bench)))
    if len(refused) == len(cells):
        raise refused[0]
    if memory_mb is not None and needed:
        fitting = memory_mb * 2**20 // needed
        if fitting < jobs:
            logger.warning(
                "%d cells at once would need %s MB: running %d", jobs, f"{jobs * needed / 2**20:,.0f}", max(1, fitting)
            )
        jobs = max(1, min(jobs, fitting))
    return Sweep(grid, cells, {place: str(error) for place, error in refused.items()}, jobs)


class Benches:
    """Benches that share a model, each lent to one cell at a time. Models of earlier cells are let go."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._free: dict[str, list[Bench]] = {}

    @contextmanager
    def lent(self, settings: Settings) -> Iterator[Bench]:
        """A bench for ``settings``, whose model nobody else uses meanwhile."""
        model = settings.model_dump_json(include={"model", "runtime"})
        with self._lock:
            self._free = {model: self._free.get(model, [])}
            lender = self._free[model].pop() if self._free[model] else Bench(settings, self._store)
        try:
            yield lender.variant(settings)
        finally:
            with self._lock:
                self._free.setdefault(model, []).append(lender)


def _what_is_looked_at(settings: Settings) -> str:
    """The settings that decide whether input can be used: cells that differ in others need no second look."""
    value = set(type(settings.method.value).model_fields) - {"site"}
    numbers = {"preservation_weight", "ridge", "slack", "slack_of_one", "spread", "clean_weight", "context_seed"}
    numbers |= {"low_rank", "null_space"}
    tokens = {"dynamic_multiplier", "tokens", "key_dtype", "keep_keys", "auto"}
    return settings.model_dump_json(
        exclude={"corpus": tokens, "method": {**dict.fromkeys(numbers, True), "value": value}}
    )


def _same_tokens(cell: Cell, settings: Settings) -> InputError | None:
    """Cells that differ in d_m would be the same cell, and a table by d_m would say what nobody has tried."""
    method = settings.method
    if MULTIPLIER not in cell.place or method.reads == "corpus":
        return None
    samples = method.reads == "samples"
    return InputError(
        f"{MULTIPLIER} makes no difference to {method.name}, which keeps no C0.",
        got=f"{MULTIPLIER}={cell.place[MULTIPLIER]}",
        remedy="vary method.low_rank.n_samples, the tokens that it reads" if samples else "it reads no tokens",
    )


def _fault(bench: Bench) -> InputError | None:
    try:
        check_input(bench, dataset=True)
    except InputError as error:
        return error
    return None
