"""Ray's calls that a pool makes, answered in this process: actors that work when they are waited for, and die."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RayError(Exception):
    """What Ray raises for an actor that is gone."""


class RayTaskError(RayError):
    """What Ray raises for an exception in a task."""


class _Method:
    def __init__(self, actor: _Actor, name: str) -> None:
        self.actor, self.name = actor, name

    def remote(self, *given: Any) -> _Call:
        return _Call(self.actor, self.name, given)


class _Call:
    def __init__(self, actor: _Actor, name: str, given: tuple[Any, ...]) -> None:
        self.actor, self.name, self.given = actor, name, given


class _Actor:
    def __init__(self, instance: Any) -> None:
        self.instance = instance
        self.begin, self.run, self.done = (_Method(self, name) for name in ("begin", "run", "done"))


class FakeRay:
    """The module ``ray``, connected to nodes that have room.

    Args:
        dies: whether the actor dies at a call, given its method and arguments.
        nodes: resources of each node.
    """

    class exceptions:  # noqa: N801
        RayError = RayError
        RayTaskError = RayTaskError

    def __init__(self, dies: Callable[..., bool] = lambda name, *given: False, nodes: list[dict] | None = None) -> None:
        self.dies = dies
        self.made: list[_Actor] = []
        self.killed: list[_Actor] = []
        self.waits = 0
        self.resources = nodes or [{"CPU": 4.0, "memory": 2.0**33}]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self.resources]

    def remote(self, kind: Any) -> FakeRay:
        self.kind = kind
        return self

    def options(self, **_: Any) -> Any:
        ray = self

        class Kind:
            @staticmethod
            def remote(*given: Any) -> _Actor:
                ray.made.append(_Actor(ray.kind(*given)))
                return ray.made[-1]

        return Kind

    def wait(self, calls: list[_Call], *, num_returns: int = 1, timeout: float) -> tuple[list[_Call], list[_Call]]:
        self.waits += 1
        first = self.waits % 3 % len(calls)  # Results come out of order.
        return (calls[first:] + calls[:first])[:num_returns], []

    def get(self, call: _Call) -> Any:
        if self.dies(call.name, *call.given):
            raise RayError("The actor died unexpectedly: worker exit type SIGKILL.\nmore")
        return getattr(call.actor.instance, call.name)(*call.given)

    def kill(self, actor: _Actor) -> None:
        self.killed.append(actor)
