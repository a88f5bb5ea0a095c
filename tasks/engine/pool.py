"""A pool of workers: Ray actors that do this for each of these, in parallel. Workers that die are replaced."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.tasks.engine.actor import Actor, Answer, Member
from factsmith.tasks.engine.cluster import places

__all__ = ["Pool"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_SECONDS_BETWEEN_LOOKS = 1.0
"""How often workers are asked how far they are. It is also the longest wait, so that Ctrl-C is not missed."""

_SECONDS_BETWEEN_LINES = 10.0

_MOST_DEATHS = 3
"""Workers that may die of the same work, or before they have begun, before the run ends."""


class _Slot:
    """A place in the pool, and the actor that fills it.

    Attributes:
        actor: the actor.
        call: the call that has not been answered; ``None`` if the worker is idle.
        number: the item that it is at; ``None`` if it is still being made, or idle.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.call: Any = actor.begin.remote()
        self.number: int | None = None


class _Shares:
    """Items that are handed out, and what has become of them.

    Attributes:
        items: the items.
        waiting: the numbers of those that nobody is at.
        found: results by number that the caller has not taken.
        died: the workers that have died of an item.
    """

    def __init__(self, items: list[Any], advance: Callable[[int], None]) -> None:
        self.items = items
        self.waiting = deque(range(len(items)))
        self.found: dict[int, Any] = {}
        self.died: Counter[int] = Counter()
        self._shown: Counter[int] = Counter()
        self._advance = advance

    def show(self, number: int, done: int) -> None:
        """Show how much of an item is done. What another worker has done before it died is not shown again."""
        if done > self._shown[number]:
            self._advance(done - self._shown[number])
            self._shown[number] = done


class Pool:
    """Workers on the nodes of a cluster.

    Args:
        ray: the module ``ray``, connected.
        make: makes a worker in its process.
        need: what a worker needs, by Ray's names of resources: ``CPU``, ``GPU``, ``memory`` in bytes.
        workers: the number of workers; ``None`` for as many as the cluster has room for.
        patience: how long to wait while nobody works and the cluster has no room, in seconds.

    Attributes:
        size: the number of workers.
    """

    def __init__(
        self, ray: Any, make: Callable[[], Member], need: Mapping[str, float], workers: int | None, patience: float
    ) -> None:
        self._ray = ray
        self._make = make
        self._need = dict(need)
        self._patience = patience
        self.size = workers or max(1, self._room())
        self._about: dict[str, Any] | None = None
        self._deaths, self._last = 0, ""
        self._slots: list[_Slot] = []
        self._looked = self._said = 0.0
        options = {
            "num_cpus": need["CPU"],
            "num_gpus": need.get("GPU", 0),
            "memory": int(need.get("memory", 0)) or None,
            "max_concurrency": 2,  # One call works, the other says how far it is.
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
        }
        self._kind = ray.remote(Actor).options(**options)

    @property
    def about(self) -> dict[str, Any]:
        """What every worker says about itself. Waits for the first one.

        Raises:
            InputError: the cluster has no room for a worker, or a worker cannot be made there.
        """
        list(self.each(_nothing, [None] if self._about is None else []))
        assert self._about is not None
        return self._about

    def each(
        self,
        work: Callable[[Any, T, Callable[[int], None]], R],
        items: Iterable[T],
        advance: Callable[[int], None] = lambda done: None,
    ) -> Generator[R, None, None]:
        """The results of ``work(worker, item, advance)``, in the order of ``items``.

        A worker that is free takes the next item. If a worker dies, another one takes its item. What is done is shown
        once, however often it is done. If work fails, or the caller stops to ask, the workers end at once.

        Args:
            work: does the work, in the process of a worker. It is a function of a module, or a ``partial`` of one.
            items: what to work on.
            advance: called with how much of the work has just been done.

        Raises:
            InputError: the cluster has no room for a worker, a worker cannot be made there, or ``work`` raised one.
            FactsmithError: ``work`` raised one, or several workers died of the same item.
            WorkerError: ``work`` raised another exception.
        """
        shares, place = _Shares(list(items), advance), 0
        begun = time.monotonic()
        try:
            while place < len(shares.items):
                self._hand_out(work, shares)
                calls = {slot.call: slot for slot in self._slots if slot.call is not None}
                for call in self._ray.wait(list(calls), timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                    self._take(calls[call], shares)
                self._look(shares)
                if any(slot.number is not None for slot in self._slots):
                    begun = time.monotonic()
                else:
                    self._check_patience(time.monotonic() - begun)
                while place in shares.found:
                    yield shares.found.pop(place)
                    place += 1
        finally:
            if place < len(shares.items):
                self.close()

    def close(self) -> None:
        """End the workers."""
        slots, self._slots = self._slots, []
        for slot in slots:
            with suppress(Exception):  # It, or the cluster, may be gone.
                self._ray.kill(slot.actor)

    def _hand_out(self, work: Callable[..., Any], shares: _Shares) -> None:
        """Fill the pool, and give each idle worker an item."""
        while len(self._slots) < self.size:
            self._slots.append(_Slot(self._kind.remote(self._make)))
        for slot in self._slots:
            if slot.call is None and shares.waiting:
                slot.number = shares.waiting.popleft()
                slot.call = slot.actor.run.remote(slot.number, work, shares.items[slot.number])

    def _take(self, slot: _Slot, shares: _Shares) -> None:
        """Take the answer to the call of ``slot``. If its worker has died, its item is handed out again."""
        number = slot.number
        try:
            answer: Answer = self._ray.get(slot.call)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._remove(slot, str(error).strip())
            if number is not None:
                shares.waiting.appendleft(number)
                shares.died[number] += 1
            self._check_deaths(0 if number is None else shares.died[number])
            return
        slot.call = slot.number = None
        if number is None:
            self._welcome(answer.get())
        else:
            shares.found[number] = answer.get()
            shares.show(number, answer.done)

    def _remove(self, slot: _Slot, why: str) -> None:
        self._deaths, self._last = self._deaths + 1, why
        self._slots.remove(slot)
        with suppress(Exception):  # It may live, but be out of reach.
            self._ray.kill(slot.actor)
        logger.warning("A worker has died, and another one takes its place: %s", why.splitlines()[0])

    def _welcome(self, about: dict[str, Any]) -> None:
        """
        Raises:
            InputError: the worker differs from the first one.
        """
        if self._about is None:
            self._about, self._deaths = about, 0
        for name, value in about.items():
            if value != self._about[name]:
                raise InputError(
                    f"Two workers differ in their {name}: results would depend on who made them.",
                    got=f"{self._about[name]} and {value}",
                    expected="workers with the same versions and the same kind of GPU",
                    remedy="use nodes of one kind; if only these differ, set runtime.tokens_per_pass and "
                    "runtime.memory_mb",
                )

    def _look(self, shares: _Shares) -> None:
        """Show how far the workers are, now and then."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        asked = [slot.actor.done.remote() for slot in self._slots if slot.number is not None]
        if not asked:
            return
        for call in self._ray.wait(asked, num_returns=len(asked), timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            with suppress(self._ray.exceptions.RayError):  # Whoever has died is found by its call.
                shares.show(*self._ray.get(call))

    def _check_deaths(self, of_item: int) -> None:
        """
        Raises:
            FactsmithError: too many workers have died.
        """
        if of_item < _MOST_DEATHS and (self._about is not None or self._deaths < _MOST_DEATHS):
            return
        what = f"{_MOST_DEATHS} workers have died, one after the other, {'at the same work' if of_item else 'at once'}."
        remedy = "give workers more memory (runtime.ray.memory_mb), or lower runtime.tokens_per_pass"
        if "ModuleNotFoundError" in self._last:
            raise InputError(
                "A package is missing where workers run.",
                got=next(line for line in self._last.splitlines() if "ModuleNotFoundError" in line),
                remedy="install the same factsmith[ray] on every node",
            )
        if "memory" in self._last or "OOM" in self._last or "SIGKILL" in self._last:
            raise InputError(what, got=self._last, remedy=remedy)
        raise FactsmithError(what, got=self._last, remedy="the logs of Ray on the node say more")

    def _check_patience(self, seconds: float) -> None:
        """Say that nobody works.

        Raises:
            InputError: nobody has worked for long, and the cluster has no room for a worker.
        """
        if seconds >= _SECONDS_BETWEEN_LINES and time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            logger.info("waiting for a worker%s", "" if self._room() else f": {self._lacking()}")
        if seconds >= self._patience and not self._room():
            raise InputError(
                "No node of the cluster has room for a worker.",
                got=self._lacking(),
                remedy="lower runtime.ray.cpus, runtime.ray.gpus or runtime.ray.memory_mb, or add nodes; "
                "runtime.ray.wait_seconds waits for a cluster that grows",
            )

    def _room(self) -> int:
        return places(self._ray, self._need)[0]

    def _lacking(self) -> str:
        _, nodes = places(self._ray, self._need)
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in self._need}
        wanted = ", ".join(_amount(name, value) for name, value in self._need.items() if value)
        has = ", ".join(_amount(name, largest[name]) for name, value in self._need.items() if value)
        return f"a worker needs {wanted}; {len(nodes)} nodes have at most {has}"


def _amount(name: str, value: float) -> str:
    return f"{value / 2**20:,.0f} MiB of memory" if name == "memory" else f"{value:g} {name}"


def _nothing(member: Any, item: None, advance: Callable[[int], None]) -> None:
    """Work that is done as soon as there is a worker."""
