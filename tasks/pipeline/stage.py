"""The stage decorator: it makes a function a stage that is timed, logged and reported, and a task in Prefect."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from factsmith.tasks.pipeline.progress import published_by
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.workspace import StageReport, Workspace

__all__ = ["SECONDS_AN_EDIT", "Outcome", "stage"]

SECONDS_AN_EDIT = "seconds_an_edit"
"""The metric of stages that write facts: seconds that a fact took, when its artifact was built."""

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
    """Make a function a stage.

    In Prefect it is a task, whose state is ``Cached`` if nothing had to be built. In a run without Prefect it is called
    as it is.
    """

    def decorate(
        function: Callable[Concatenate[Workspace, P], Outcome[T]],
    ) -> Callable[Concatenate[Workspace, P], T]:
        def run(workspace: Workspace, /, *args: P.args, **kwargs: P.kwargs) -> Outcome[T]:
            started_at, started = time.time(), time.perf_counter()
            with resource_errors(f"Stage {name}", workspace.store.root, workspace.runtime):
                workspace.limit_threads()  # In every stage, so that last bits do not depend on what is cached.
                try:
                    with _progress_on_page(workspace):
                        outcome = function(workspace, *args, **kwargs)
                except BaseException:
                    # An error in logging, for instance on a full disk, must not hide the error of the stage.
                    with contextlib.suppress(Exception):
                        workspace.tracker.stage(
                            name, started=started_at, metrics={}, tags={"state": "failed"}, failed=True
                        )
                    raise
                seconds = time.perf_counter() - started
                brought = outcome.artifact in workspace.store.brought
                workspace.store.brought.discard(outcome.artifact)
                state = "built" if outcome.built else "fetched" if brought else "cached"
                metrics = {**outcome.metrics, **workspace.memory_used}
                report = StageReport(name, state, round(seconds, 3), outcome.artifact, metrics)
                workspace.add(report)
                _log_on_page(workspace, report)
                workspace.tracker.stage(
                    name,
                    started=started_at,
                    metrics={"seconds": seconds, **metrics},
                    tags={"state": report.state, "artifact": report.artifact, **outcome.tags},
                    failed=False,
                )
            return outcome

        @functools.cache
        def in_prefect() -> Any:
            from factsmith.tasks.pipeline.page import as_task

            return as_task(name)

        def call(workspace: Workspace, /, *args: P.args, **kwargs: P.kwargs) -> T:
            work = functools.partial(run, workspace, *args, **kwargs)
            if workspace.flow_run is None:
                return work().value
            value: T = in_prefect()(work, return_state=True).result()
            return value

        functools.update_wrapper(call, function)
        return call

    return decorate


def _progress_on_page(workspace: Workspace) -> contextlib.AbstractContextManager[None]:
    if workspace.flow_run is None:
        return contextlib.nullcontext()
    from factsmith.tasks.pipeline.page import ProgressArtifacts  # It imports Prefect, which takes a second.

    return published_by(ProgressArtifacts())


def _log_on_page(workspace: Workspace, report: StageReport) -> None:
    if workspace.flow_run is not None:
        from factsmith.tasks.pipeline.page import page_log

        page_log(workspace, "%s: %s in %.1f s, %s", report.name, report.state, report.seconds, report.artifact)
