"""Runs whose process died before it could end them: another process marks them as crashed in Prefect.

Prefect itself notices the death of a run that `factsmith serve` or a worker has started, but not that of a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from factsmith.tasks.pipeline.page import UNFINISHED
from factsmith.tasks.tracking.dead_runs import dead_in_prefect, note_ended

__all__ = ["crash_dead_flow_runs"]


def crash_dead_flow_runs(home: Path) -> None:
    """Mark flow runs in ``home`` whose process has died as crashed, if this Prefect server knows them."""
    for sign in dead_in_prefect(home):
        with get_client(sync_client=True) as client:
            try:
                run = _outermost(client, client.read_flow_run(UUID(sign.content["prefect"])))
            except ObjectNotFound:
                continue  # Another server knows it.
            crashed: State[Any] = Crashed(message="the process of this run was killed; the same command continues it")
            _crash(client, [run], crashed)
        note_ended(sign, prefect_ended=True)


def _outermost(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """The run that has started ``run``, or that has started the one which has, ..."""
    while run.parent_task_run_id is not None:
        parent = client.read_flow_runs(
            flow_run_filter=None,
            task_run_filter=TaskRunFilter.model_validate({"id": {"any_": [run.parent_task_run_id]}}),
        )
        if not parent:
            break
        run = parent[0]
    return run


def _crash(client: SyncPrefectClient, runs: Sequence[FlowRun], crashed: State[Any]) -> None:
    """Mark unfinished runs, their tasks and the runs that they have started."""
    ids = [run.id for run in runs]
    for run in runs:
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(run.id, crashed, force=True)
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": ids}}),
        task_run_filter=TaskRunFilter.model_validate({"state": UNFINISHED}),
    )
    for task in tasks:
        client.set_task_run_state(task.id, crashed, force=True)
    below = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": ids}, "state": UNFINISHED})
    if started := client.read_flow_runs(flow_run_filter=below):
        _crash(client, started, crashed)
