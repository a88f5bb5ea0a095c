"""Work that goes on in a thread while its caller computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

__all__ = ["Background"]


class Background(AbstractContextManager["Background"]):
    """Makes calls one after the other in a thread. When it is closed, all of them have ended.

    An error in a call is raised by every later ``call``, which is not made, or when this is closed.

    Args:
        begin: called in the thread before the first call.
    """

    def __init__(self, begin: Callable[[], None] = lambda: None) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background", initializer=begin)
        self._last: Future[Any] | None = None

    def call(self, function: Callable[..., Any], *given: Any) -> None:
        """Call ``function`` once the call before it has ended, which is waited for."""
        self._wait()
        self._last = self._pool.submit(function, *given)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self._wait()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
