"""A stage: a Prefect task that asks the artifact store first."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from factsmith.tasks.pipeline.resource_errors import shortages
from factsmith.tasks.pipeline.workspace import Bench, StageReport

__all__ = ["Outcome", "stage"]


T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a stage's function gives back.

    Attributes:
        value: for the stages after it.
        artifact: address of what it left in the store.
        built: whether anything had to be built.
        metrics: numbers worth logging (tokens, bytes, facts, ...).
        tags: digests and words worth logging.
    """

    value: T
    artifact: str
    built: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def stage(name: str) -> Callable[[Callable[Concatenate[Bench, P], Outcome[T]]], Callable[Concatenate[Bench, P], T]]:
    """Make a function a stage: timed, logged to MLflow, listed in the run's report, ``Cached`` in Prefect on a hit.

    There is one cache, the artifact store; Prefect's own is off, since it would answer for artifacts that are gone.
    """

    def decorate(function: Callable[Concatenate[Bench, P], Outcome[T]]) -> Callable[Concatenate[Bench, P], T]:
        @task(name=name, persist_result=False, cache_policy=NO_CACHE)
        @functools.wraps(function)
        def run(bench: Bench, /, *args: P.args, **kwargs: P.kwargs) -> State[T]:
            began, started = time.time(), time.perf_counter()
            with shortages(f"Stage {name}", bench.store.root, bench.settings.runtime):
                bench.limit_threads()  # also where no model is loaded: last bits must not depend on what is cached
                try:
                    outcome = function(bench, *args, **kwargs)
                except BaseException:
                    # A log that cannot be written, to a full disk say, must not hide what went wrong.
                    with contextlib.suppress(Exception):
                        bench.tracker.stage(name, started=began, metrics={}, tags={"state": "failed"}, failed=True)
                    raise
                seconds = time.perf_counter() - started
                report = StageReport(name, "built" if outcome.built else "cached", round(seconds, 3), outcome.artifact)
                bench.reports.append(report)
                bench.tracker.stage(
                    name,
                    started=began,
                    metrics={"seconds": seconds, **outcome.metrics},
                    tags={"state": report.state, "artifact": report.artifact, **outcome.tags},
                    failed=False,
                )
            name_of_state = "Completed" if outcome.built else "Cached"
            return Completed(name=name_of_state, message=outcome.artifact, data=outcome.value)

        def call(bench: Bench, /, *args: P.args, **kwargs: P.kwargs) -> T:
            state: Any = run(bench, *args, **kwargs, return_state=True)
            value: T = state.result()
            return value

        functools.update_wrapper(call, function)
        return call

    return decorate
