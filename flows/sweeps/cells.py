"""The cells of a sweep, checked before any of them runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose_cell
from factsmith.flows.configuration.grid import Cell, Grid, read_grid
from factsmith.flows.configuration.unread import refuse_unread, unread
from factsmith.flows.sweeps.lender import Lender
from factsmith.tasks.planning.home import open_store
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.preflight import check_input, check_preservation
from factsmith.tasks.planning.settings import Settings

__all__ = ["Sweep", "open_sweep"]

logger = logging.getLogger(__name__)

_OF_A_PROCESS = 200 * 2**20
"""Bytes that a process needs for itself, beside what a plan counts and what it shares with the others.

170 MiB were measured after small cells."""


@dataclass(frozen=True)
class Sweep:
    """A sweep whose input has been checked.

    Attributes:
        grid: its axes.
        cells: the cells and their settings, in the order of the axes.
        refused: why some cells cannot run, by the index of the cell.
        jobs: number of cells to run at once, each in a process of its own.
        arguments: what the user gave.
        on_ray: whether cells that run at once run on a Ray cluster.
        memory: most bytes that a cell needs by its plan; 0 if nobody needs to know.
    """

    grid: Grid
    cells: list[tuple[Cell, Settings]]
    refused: dict[int, str]
    jobs: int
    arguments: Sequence[str]
    on_ray: bool = False
    memory: int = 0


def open_sweep(arguments: Sequence[str], *, jobs: int = 1, memory_mb: int | None = None) -> Sweep:
    """Check everything that the user gave before anything is written.

    Args:
        arguments: choices and settings, as for ``read_grid``.
        jobs: most cells to run at once, each in a process of its own.
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
    on_ray = jobs > 1 and _on_ray([settings for _, settings in cells], memory_mb)
    faults: dict[str, InputError | None] = {}
    refused: dict[int, InputError] = {}
    needed = 0
    lender = Lender(open_store())
    for place, (cell, settings) in enumerate(cells):
        run = lender.run(settings)
        checked = _checked_settings(settings)
        if checked not in faults:
            faults[checked] = _fault(partial(check_input, run, dataset=True, sizes=False))
        error = faults[checked] or _fault(partial(check_preservation, run))
        if error := error or _without_effect(unused[place] & set(cell.place), settings):
            refused[place] = error
        elif memory_mb is not None or on_ray:
            needed = max(needed, *(stage.memory for stage in plan(run)))
    if len(refused) == len(cells):
        raise refused[0]
    jobs = min(jobs, len(cells) - len(refused))
    needed += _OF_A_PROCESS
    if memory_mb is not None and jobs > 1:
        fitting = memory_mb * 2**20 // needed
        if fitting < jobs:
            logger.warning(
                "%d cells at once would need %s MiB of memory: at most %d run at once",
                jobs,
                f"{jobs * needed / 2**20:,.0f}",
                max(1, fitting),
            )
        jobs = max(1, min(jobs, fitting))
    reasons = {place: str(error) for place, error in refused.items()}
    return Sweep(grid, cells, reasons, jobs, arguments, on_ray, needed)


def _on_ray(cells: Sequence[Settings], memory_mb: int | None) -> bool:
    """Whether cells that run at once run on a Ray cluster.

    Raises:
        InputError: some would, and others not, or memory is given that is not that of a cell.
    """
    engines = {(settings.runtime.engine, settings.runtime.ray.model_dump_json()) for settings in cells}
    if all(engine == "local" for engine, _ in engines):
        return False
    if len(engines) > 1:
        raise InputError(
            "Cells that run at once share one engine.",
            got="several values of runtime.engine or runtime.ray",
            remedy="leave out --jobs, or make a sweep of each",
        )
    if memory_mb is not None:
        raise InputError(
            "--memory-mb is the memory of this machine.", got="runtime.engine=ray", remedy="set runtime.ray.memory_mb"
        )
    return True


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
