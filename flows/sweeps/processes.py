"""Long-lived processes that each do one piece of work at a time.

A pool of ``concurrent.futures``, of loky or of Prefect breaks as a whole when one of its processes is killed, and does
not say by which signal. Here a death ends one piece of work, and another process takes the next.

Processes are forked from one that has only imported what this process has imported. Imports take longer than a small
cell, and are paid once. This process itself cannot be forked: it has threads, and may have a GPU in use.

Whatever happens to the caller, no process outlives it: each ends when the caller ends.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, wait
from threading import Lock, Thread
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import torch

from factsmith.tasks.pipeline.progress import progress, published_by, shown_by
from factsmith.tasks.pipeline.signals import Terminated, deliver_lost_signals

__all__ = ["Died", "in_processes"]

T = TypeVar("T")
R = TypeVar("R")

Begin: TypeAlias = Callable[[int], AbstractContextManager[Callable[[T], R]]]

_LONGEST_WAIT = 0.5
"""Longest single wait, in seconds. A longer one may miss a Ctrl-C just as it starts."""

_SECONDS_TO_END = 10.0
"""How long a process that is asked to end may take."""

_SECONDS_BETWEEN_MESSAGES = 0.2
"""Progress is sent no more often."""

_IMPORTED = ("factsmith.", "transformers.models.")
_WHOLE = ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "matplotlib.figure")
"""What processes are forked with, as far as this process has imported it."""


@dataclass(frozen=True)
class Died:
    """A process that ended before its work did.

    Attributes:
        code: its exit code, or the negative number of the signal that killed it.
    """

    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        with suppress(ValueError):
            return f"killed by {signal.Signals(-self.code).name}"
        return f"killed by signal {-self.code}"


def in_processes(
    most: int, begin: Begin[T, R], choose: Callable[[int], T | None], *, threads: int
) -> Generator[tuple[int, R | Died], None, None]:
    """Have work done by processes. Yields the number of a process and the result of its work, as each piece ends.

    Log messages and progress of the processes are shown by this one.

    Args:
        most: most processes at once.
        begin: called in each process with its number, from 0 to ``most`` - 1. It gives the function that does the work.
            It is pickled, and so are the work and the results.
        choose: gives the next piece of work of the process with that number; ``None`` if nothing is left.
        threads: CPU threads of each process.
    """
    context = multiprocessing.get_context("forkserver")
    whole = [name for name in _WHOLE if name in sys.modules]
    context.set_forkserver_preload([*sorted(name for name in sys.modules if name.startswith(_IMPORTED)), *whole])
    at_work: dict[Connection, _Process] = {}

    def give(number: int, process: _Process | None = None) -> None:
        """Give a process its next work. It is started if it does not run, and ends if there is none."""
        if (work := choose(number)) is None:
            if process is not None:
                process.connection.close()
            return
        if process is None:
            process = _Process(context, number, begin, threads)
            started.append(process)
        at_work[process.connection] = process
        with suppress(BrokenPipeError, ConnectionResetError):  # Whoever reads it finds that the process has ended.
            process.connection.send(work)

    started: list[_Process] = []
    try:
        for number in range(most):
            give(number)
        while at_work:
            for ready in wait(list(at_work), _LONGEST_WAIT):
                process = at_work[ready]  # type: ignore[index]
                ended = process.receive()
                if ended is None:
                    continue
                del at_work[process.connection]
                yield process.number, ended.value
                give(process.number, None if isinstance(ended.value, Died) else process)
    finally:
        _end(started, busy=list(at_work.values()))


@dataclass(frozen=True)
class _Result:
    value: Any


class _Process:
    """A process, as its caller sees it."""

    def __init__(self, context: Any, number: int, begin: Begin[Any, Any], threads: int) -> None:
        self.number = number
        self.connection, theirs = context.Pipe()
        about = _About(number, threads, dict(os.environ), logging.getLogger().getEffectiveLevel())
        self._process = context.Process(target=_serve, args=(theirs, about, begin), name=f"factsmith-{number}")
        self._process.start()
        theirs.close()
        self._shown: dict[int, tuple[ExitStack, Callable[[int], None]]] = {}

    def receive(self) -> _Result | None:
        """Take one message. Returns the result of the work, if that is what came, or how the process ended."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.connection.close()
            self._process.join(_SECONDS_TO_END)
            message = _Result(Died(self._process.exitcode or 0))
        if isinstance(message, _Result):
            for shown, _ in self._shown.values():
                shown.close()
            self._shown.clear()
            return message
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        else:
            self._show(*message)
        return None

    def _show(self, bar: int, done: int | None, begun: tuple[str, int] | None = None) -> None:
        """Show progress of the process: a bar begins, advances, or ends."""
        if begun is not None:
            name, total = begun
            shown = ExitStack()
            shown.enter_context(published_by(None))  # The process publishes it.
            self._shown[bar] = shown, shown.enter_context(progress(f"{self.number + 1}: {name}", total))
        elif bar in self._shown:
            shown, advance = self._shown[bar]
            if done is not None:
                advance(done)
            else:
                del self._shown[bar]
                shown.close()

    @property
    def is_alive(self) -> bool:
        alive: bool = self._process.is_alive()
        return alive

    def ask_to_end(self) -> None:
        self.connection.close()
        self._process.terminate()

    def join(self, seconds: float) -> None:
        self._process.join(seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _end(processes: list[_Process], busy: list[_Process]) -> None:
    """End all processes. Busy ones are asked to, and what does not end is killed."""
    for process in busy:
        process.ask_to_end()
    deadline = time.monotonic() + _SECONDS_TO_END
    try:
        for process in processes:
            process.connection.close()
            process.join(max(0.0, deadline - time.monotonic()))
    finally:  # Even if the user asks a second time, none is left.
        for process in processes:
            if process.is_alive:
                process.kill()


# ------------------------------------------------------------------------------------------------------ in the process


@dataclass(frozen=True)
class _About:
    number: int
    threads: int
    environment: Mapping[str, str]
    level: int


class _Messages:
    """Sends messages to the caller. Several threads may."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one_at_a_time = Lock()

    def send(self, message: Any) -> None:
        with self._one_at_a_time, suppress(BrokenPipeError, ConnectionResetError):  # The caller may have died.
            self._connection.send(message)


class _LogToCaller(logging.handlers.QueueHandler):
    """Sends log messages to the caller, as text."""

    def enqueue(self, record: logging.LogRecord) -> None:
        cast(_Messages, self.queue).send(record)


def _serve(connection: Connection, about: _About, begin: Begin[Any, Any]) -> None:
    """Do one piece of work after the other, until the caller closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, which asks by SIGTERM.
    signal.signal(signal.SIGTERM, _terminate)
    deliver_lost_signals()
    Thread(target=_end_with_caller, daemon=True).start()
    os.environ.clear()
    os.environ.update(about.environment)
    messages = _Messages(connection)
    handler = _LogToCaller(cast(Any, messages))
    logging.basicConfig(level=about.level, format="%(message)s", handlers=[handler], force=True)
    torch.set_num_threads(about.threads)
    try:
        with shown_by(partial(_shown_by_caller, messages, count())), begin(about.number) as do:
            while True:
                try:
                    work = connection.recv()
                except (EOFError, ConnectionResetError):
                    return
                messages.send(_Result(do(work)))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


def _end_with_caller() -> None:
    if (caller := multiprocessing.parent_process()) is not None:
        caller.join()
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(_SECONDS_TO_END)


@contextmanager
def _shown_by_caller(
    messages: _Messages, numbers: Iterator[int], name: str, total: int
) -> Iterator[Callable[[int], None]]:
    """Progress that the caller shows."""
    bar, done, sent = next(numbers), 0, time.monotonic()
    messages.send((bar, None, (name, total)))

    def advance(more: int) -> None:
        nonlocal done, sent
        done += more
        if time.monotonic() - sent > _SECONDS_BETWEEN_MESSAGES:
            messages.send((bar, done))
            done, sent = 0, time.monotonic()

    try:
        yield advance
    finally:
        messages.send((bar, done))
        messages.send((bar, None))
