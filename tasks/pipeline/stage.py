"""The stage decorator: it makes a function a Prefect task that is timed, logged and reported."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Completed

from factsmith.tasks.pipeline.progress import published_by
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.workspace import StageReport, Workspace

__all__ = ["Outcome", "ProgressArtifacts", "page_log", "stage"]

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What the function of a stage returns.

    Attributes:
        value: the result, for the stages that follow.
        artifact: address of the artifact or series in the store.
        built: whether anything had to be built.
        metrics: numbers to log (tokens, bytes, facts, ...).
        tags: texts to log, such as digests.
    """

    value: T
    artifact: str
    built: bool
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def stage(
    name: str,
) -> Callable[[Callable[Concatenate[Workspace, P], Outcome[T]]], Callable[Concatenate[Workspace, P], T]]:
    """Make a function a stage. Prefect shows its state as ``Cached`` if nothing had to be built.

    The artifact store is the only cache. Prefect's own cache is off, because it would also return results whose
    artifacts have been deleted.
    """

    def decorate(
        function: Callable[Concatenate[Workspace, P], Outcome[T]],
    ) -> Callable[Concatenate[Workspace, P], T]:
        @task(name=name, persist_result=False, cache_policy=NO_CACHE)
        @functools.wraps(function)
        def run(workspace: Workspace, /, *args: P.args, **kwargs: P.kwargs) -> State[T]:
            started_at, started = time.time(), time.perf_counter()
            with resource_errors(f"Stage {name}", workspace.store.root, workspace.runtime):
                workspace.limit_threads()  # In every stage, so that last bits do not depend on what is cached.
                try:
                    with published_by(ProgressArtifacts()):
                        outcome = function(workspace, *args, **kwargs)
                except BaseException:
                    # An error in logging, for instance on a full disk, must not hide the error of the stage.
                    with contextlib.suppress(Exception):
                        workspace.tracker.stage(
                            name, started=started_at, metrics={}, tags={"state": "failed"}, failed=True
                        )
                    raise
                seconds = time.perf_counter() - started
                report = StageReport(name, "built" if outcome.built else "cached", round(seconds, 3), outcome.artifact)
                workspace.add(report)
                page_log(workspace, "%s: %s in %.1f s, %s", name, report.state, seconds, report.artifact)
                workspace.tracker.stage(
                    name,
                    started=started_at,
                    metrics={"seconds": seconds, **outcome.metrics},
                    tags={"state": report.state, "artifact": report.artifact, **outcome.tags},
                    failed=False,
                )
            state = "Completed" if outcome.built else "Cached"
            return Completed(name=state, message=outcome.artifact, data=outcome.value)

        def call(workspace: Workspace, /, *args: P.args, **kwargs: P.kwargs) -> T:
            state: Any = run(workspace, *args, **kwargs, return_state=True)
            value: T = state.result()
            return value

        functools.update_wrapper(call, function)
        return call

    return decorate


def page_log(workspace: Workspace, message: str, *values: object) -> None:
    """Write a line into the log on the page of the run in Prefect, whose parts have pages of their own."""
    if workspace.flow_run:
        logger = logging.getLogger("factsmith.page")
        if not logger.handlers:
            logger.propagate = False
            logger.addHandler(APILogHandler())
        logger.info(message, *values, extra={"flow_run_id": workspace.flow_run, "task_run_id": None})


class ProgressArtifacts:
    """Shows the progress of long work as an artifact on the page of the run in Prefect."""

    def __init__(self) -> None:
        self._shown: dict[str, UUID] = {}

    def __call__(self, name: str, percent: float) -> None:
        """Show how much is done, in percent."""
        if not flow_run.id:
            return
        with contextlib.suppress(Exception):  # A server that does not answer must not end the work.
            if name in self._shown:
                update_progress_artifact(self._shown[name], percent)
            else:
                key = f"progress-{name.replace(' ', '-')}"
                made: Any = create_progress_artifact(percent, key=key, description=f"progress: {name}")
                self._shown[name] = made
