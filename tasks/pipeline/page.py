"""What a run does in Prefect: its tasks and subflows, and its log lines and progress on the page of the run.

Stages import this module when Prefect runs them. A plan imports all stages and runs none, and Prefect takes more than a
second to import.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Completed

from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["ProgressArtifacts", "as_task", "page_log", "subflow"]

T = TypeVar("T")


def as_task(name: str) -> Any:
    """The Prefect task ``name``. It takes what it runs, a function without arguments that returns an ``Outcome``.

    Prefect looks for futures in every argument, and in what it holds. In a sweep, walking through the records of every
    cell took longer than the sweep.

    The artifact store is the only cache. Prefect's own cache is off, because it would also return results whose
    artifacts have been deleted.
    """

    def run(work: Callable[[], Any]) -> State[Any]:
        outcome = work()
        return Completed(name="Completed" if outcome.built else "Cached", message=outcome.artifact, data=outcome.value)

    return task(name=name, persist_result=False, cache_policy=NO_CACHE)(run)


def subflow(workspace: Workspace, name: str, body: Callable[[], T], *, flow_run_name: str | None = None) -> T:
    """Run ``body``, a part of the run, as a subflow. Without Prefect it is called as it is.

    It takes no parameters, because Prefect would try to serialise the model.
    """
    if workspace.flow_run is None:
        return body()
    result: T = Flow(body, name=name, flow_run_name=flow_run_name or name)()
    return result


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
