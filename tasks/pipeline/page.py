"""What a run does in Prefect: its tasks and subflows, and its log lines and progress on the page of the run.

Stages import this module when Prefect runs them. A plan imports all stages and runs none, and Prefect takes more than a
second to import.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow, get_client, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.context import hydrated_context, serialize_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed

from factsmith.tasks.pipeline.workspace import Workspace

__all__ = [
    "UNFINISHED",
    "ProgressArtifacts",
    "as_task",
    "continued_flow_run",
    "crash_tasks",
    "flow_run_for_others",
    "page_log",
    "run_as_task",
    "subflow",
]

UNFINISHED = {"type": {"any_": [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]}}
"""A filter of runs by their state."""

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


def run_as_task(name: str, run_name: str, body: Callable[[], T]) -> T:
    """Run ``body`` as a task of the present flow run. Prefect knows of it when this returns."""

    def run() -> T:
        return body()

    whole: Any = task(name=name, task_run_name=lambda: run_name, persist_result=False, cache_policy=NO_CACHE)(run)
    try:
        result: T = whole()
    finally:
        _send_events()
    return result


def _send_events() -> None:
    """Wait until Prefect has the states of the tasks so far. A process may end without sending them."""
    with contextlib.suppress(Exception):  # A server that does not answer must not end the work.
        EventsWorker.instance().wait_until_empty()
        APILogHandler().flush()


def flow_run_for_others() -> dict[str, Any]:
    """What another process needs to know to run tasks of the present flow run."""
    known = serialize_context()
    del known["flow_run_context"]["flow"]  # It cannot be sent, and is not needed.
    return known


def continued_flow_run(known: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Run tasks of the flow run of another process in this context. ``known`` is from ``flow_run_for_others``."""
    flow: Any = Flow(lambda: None, name="cells")
    context: Any = hydrated_context({**known, "flow_run_context": {**known["flow_run_context"], "flow": flow}})
    return context  # type: ignore[no-any-return]


def crash_tasks(flow_run_id: str, message: str) -> None:
    """Mark the unfinished tasks of a flow run as crashed: those of processes that have died."""
    crashed: State[Any] = Crashed(message=message)
    of_run = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
    unfinished = TaskRunFilter.model_validate({"state": UNFINISHED})
    with get_client(sync_client=True) as client:
        for one in client.read_task_runs(flow_run_filter=of_run, task_run_filter=unfinished):
            client.set_task_run_state(one.id, crashed, force=True)


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
