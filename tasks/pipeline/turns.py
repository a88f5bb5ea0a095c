"""Work on several devices of one machine: one thread for each, and results in the order of the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import pairwise
from threading import Event
from typing import TypeVar

__all__ = ["in_turn", "on_shares"]

W = TypeVar("W")
T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Items that a worker has at most, the one that it works on included, before the oldest result has been taken."""

_LONGEST_WAIT = 0.5
"""Longest single wait for a result, in seconds. A longer one may miss a Ctrl-C just as it starts."""


def in_turn(
    workers: Sequence[W],
    work: Callable[[W, T], R],
    items: Iterable[T],
    *,
    first: int = 0,
    ahead: bool = False,
    begin: Callable[[], None] = lambda: None,
    stopping: Event | None = None,
) -> Generator[R, None, None]:
    """The results of ``work(worker, item)``, in the order of ``items``. The workers take the items in turn.

    Which worker takes an item does not depend on how quick they are. Each works in a thread of its own. A single one
    works in the caller's thread, when its result is asked for, unless it is to work ahead. If work fails, or the caller
    stops to ask, each worker ends the item that it is at, and no further one is begun. Of several errors, that of the
    first item is raised.

    Args:
        workers: what the work is done with.
        work: does the work.
        items: what to work on; taken in the caller's thread.
        first: number of the first item. Item i goes to worker i mod n.
        ahead: whether a single worker, too, works while the caller uses the results.
        begin: called in each thread before its first item.
        stopping: set once no further result is wanted. Work that takes long may look at it.
    """
    if len(workers) == 1 and not ahead:
        for item in items:
            yield work(workers[0], item)
        return
    threads = [ThreadPoolExecutor(1, initializer=begin) for _ in workers]
    pending: deque[Future[R]] = deque()
    try:
        for number, item in enumerate(items, first):
            if len(pending) == _AHEAD * len(workers):
                yield _result(pending.popleft())
            place = number % len(workers)
            pending.append(threads[place].submit(work, workers[place], item))
        while pending:
            yield _result(pending.popleft())
    finally:
        if stopping is not None:
            stopping.set()
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.shutdown()


def on_shares(
    workers: Sequence[W],
    work: Callable[[W, Sequence[T], Callable[[int], None]], R],
    items: Sequence[T],
    advance: Callable[[int], None],
    *,
    begin: Callable[[], None] = lambda: None,
) -> list[R]:
    """The results of ``work(worker, share, advance)``: ``items`` are divided evenly, in their order.

    If the caller is interrupted, or learns that a share has failed, which it does in the order of the shares, workers
    that are still at work end when they next call ``advance``.
    """
    stopping = Event()

    def advance_or_stop(done: int) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        advance(done)

    def share_of(worker: W, share: Sequence[T]) -> R:
        return work(worker, share, advance_or_stop)

    bounds = [len(items) * place // len(workers) for place in range(len(workers) + 1)]
    shares = [items[start:stop] for start, stop in pairwise(bounds) if stop > start]
    with closing(in_turn(workers, share_of, shares, begin=begin, stopping=stopping)) as results:
        return list(results)


def _result(future: Future[R]) -> R:
    while not future.done():
        wait([future], _LONGEST_WAIT)
    return future.result()
