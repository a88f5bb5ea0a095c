"""Progress of long work: bars on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress", "published_by", "shown_by"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0

_SECONDS_BEFORE_PUBLISHING = 20.0
_SECONDS_BETWEEN_PUBLISHING = 5.0
"""Short work is not published, because publishing costs a call of a server."""

_publish: ContextVar[Callable[[str, float], None] | None] = ContextVar("_publish", default=None)

_display: ContextVar[Progress | None] = ContextVar("_display", default=None)
"""The display of the outer work, if there is one. Two displays would overwrite each other."""

_show: ContextVar[Callable[[str, int], AbstractContextManager[Callable[[int], None]]] | None]
_show = ContextVar("_show", default=None)


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done. Yields a function to call with the number of items just finished."""
    show = _show.get() or (_bar if sys.stderr.isatty() else _lines)
    publish = _publish.get()
    with show(name, total) as advance, _published(publish, name, total) as advance_published:
        one_at_a_time = Lock()  # Devices that share the work have a thread each.

        def advance_both(done: int) -> None:
            with one_at_a_time:
                advance(done)
                advance_published(done)

        yield advance_both


@contextmanager
def shown_by(show: Callable[[str, int], AbstractContextManager[Callable[[int], None]]]) -> Iterator[None]:
    """Show the progress of work in this context by ``show``, which is given what ``progress`` is."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)


@contextmanager
def published_by(publish: Callable[[str, float], None] | None) -> Iterator[None]:
    """Publish the progress of long work in this context: its name and how much is done, in percent.

    ``None`` publishes nothing.
    """
    token = _publish.set(publish)
    try:
        yield
    finally:
        _publish.reset(token)


@contextmanager
def _published(publish: Callable[[str, float], None] | None, name: str, total: int) -> Iterator[Callable[[int], None]]:
    done, published = 0, False
    due = time.monotonic() + _SECONDS_BEFORE_PUBLISHING

    def advance(more: int) -> None:
        nonlocal done, published, due
        done += more
        if publish is not None and time.monotonic() > due:
            publish(name, min(100.0, 100 * done / max(1, total)))
            published, due = True, time.monotonic() + _SECONDS_BETWEEN_PUBLISHING

    yield advance
    if publish is not None and published:
        publish(name, 100.0)


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    if (outer := _display.get()) is not None:
        bar = outer.add_task(name, total=total)
        try:
            yield lambda done: outer.advance(bar, done)
        finally:
            outer.remove_task(bar)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        bar = display.add_task(name, total=total)
        token = _display.set(display)
        try:
            yield lambda done: display.advance(bar, done)
        finally:
            _display.reset(token)


@contextmanager
def _lines(name: str, total: int) -> Iterator[Callable[[int], None]]:
    done, logged = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, logged
        done += more
        if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
            logged = time.monotonic()
            logger.info("%s: %s of %s", name, f"{done:,}", f"{total:,}")

    yield advance
