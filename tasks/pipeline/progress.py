"""How long work tells that it goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["stopped_by", "work"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0

_bars: ContextVar[Progress | None] = ContextVar("_bars", default=None)
"""Bars that are being shown, for work within work: two displays would write over each other."""

_stopping: ContextVar[Event | None] = ContextVar("_stopping", default=None)


@contextmanager
def work(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """While open, show how much of ``total`` is done; the function it gives takes how much more is."""
    show = _bar if sys.stderr.isatty() else _lines
    stopping = _stopping.get()
    with show(what, total) as advance:

        def advance_or_stop(done: int) -> None:
            if stopping is not None and stopping.is_set():
                raise KeyboardInterrupt
            advance(done)

        yield advance_or_stop


@contextmanager
def stopped_by(event: Event) -> Iterator[None]:
    """Work in it ends as Ctrl-C would end it, once ``event`` is set: signals reach the main thread alone."""
    if event.is_set():
        raise KeyboardInterrupt
    token = _stopping.set(event)
    try:
        yield
    finally:
        _stopping.reset(token)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    if (above := _bars.get()) is not None:
        bar = above.add_task(what, total=total)
        try:
            yield lambda done: above.advance(bar, done)
        finally:
            above.remove_task(bar)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=total)
        token = _bars.set(progress)
        try:
            yield lambda done: progress.advance(bar, done)
        finally:
            _bars.reset(token)


@contextmanager
def _lines(what: str, total: int) -> Iterator[Callable[[int], None]]:
    done, spoken = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, spoken
        done += more
        if time.monotonic() - spoken > _SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            logger.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")

    yield advance
