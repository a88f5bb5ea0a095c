"""What runs in the process of a worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from factsmith.artifacts.errors import FactsmithError, InputError

__all__ = ["Actor", "Answer", "Member", "WorkerError"]


class Member(Protocol):
    """A worker, in its process: whatever a stage's work needs there."""

    @property
    def about(self) -> dict[str, Any]:
        """What must be the same for all workers, so that results do not depend on who made them."""

    def errors(self) -> AbstractContextManager[None]:
        """Turns errors of full memory or a full disk in its context into ``InputError``."""


class WorkerError(Exception):
    """A bug, or damage, in the process of a worker. Its traceback is the message."""


@dataclass(frozen=True)
class Answer:
    """What a call gave. Errors travel as text, because not every exception survives the way.

    Attributes:
        value: the result.
        fault: the parts of a ``FactsmithError`` that was raised: whether it is the user's, what it says, its details.
        trace: the traceback of any other exception.
        done: how much of the work was shown by then.
    """

    value: Any = None
    fault: tuple[bool, str, dict[str, str]] | None = None
    trace: str | None = None
    done: int = 0

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Answer:
        """What ``call`` gives."""
        try:
            return cls(call())
        except FactsmithError as error:
            return cls(fault=(isinstance(error, InputError), error.what, error.details))
        except Exception:
            return cls(trace=traceback.format_exc())

    def get(self) -> Any:
        """The result.

        Raises:
            FactsmithError: the worker raised one; ``InputError`` for an ``InputError``.
            WorkerError: the worker raised another exception.
        """
        if self.fault is not None:
            users, what, details = self.fault
            error = (InputError if users else FactsmithError)(what)
            error.details = details
            error.args = ("\n".join([what, *(f"  {name}: {value}" for name, value in details.items())]),)
            raise error
        if self.trace is not None:
            raise WorkerError(f"in the process of a worker:\n{self.trace}")
        return self.value


class Actor:
    """The Ray actor of a worker. One call works, while another asks how far it is.

    Args:
        make: makes the worker.
    """

    def __init__(self, make: Callable[[], Member]) -> None:
        self._make = make
        self._member: Member | None = None
        self._done = (-1, 0)

    def begin(self) -> Answer:
        """Make the worker. The answer is what it says about itself."""

        def made() -> dict[str, Any]:
            self._member = self._make()
            return self._member.about

        return Answer.of(made)

    def run(self, number: int, work: Callable[[Any, Any, Callable[[int], None]], Any], item: Any) -> Answer:
        """``work(worker, item, advance)``, which is the work called ``number``."""
        self._done = (number, 0)

        def advance(done: int) -> None:
            self._done = (number, self._done[1] + done)

        def worked() -> Any:
            assert self._member is not None
            with self._member.errors():
                return work(self._member, item, advance)

        return replace(Answer.of(worked), done=self._done[1])

    def done(self) -> tuple[int, int]:
        """The number of the work that was begun last, and how much of it is done."""
        return self._done
