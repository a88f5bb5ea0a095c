"""Runs whose process died before it could end them: another process ends them in MLflow.

A run has a file in ``FACTSMITH_HOME/runs``, which its process keeps locked. If the file is there and not locked, the
process is dead, whatever killed it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factsmith.artifacts.processes.signs_of_life import SignOfLife, dead, sign_of_life

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["alive", "any_dead", "dead_in_prefect", "end_dead_runs", "note_ended"]

_DAYS_TO_WAIT = 30
"""How long a dead run waits for the server that knows it."""


def _folder(home: Path) -> Path:
    return home / "runs"


def alive(home: Path, run_id: str, content: Mapping[str, Any]) -> AbstractContextManager[SignOfLife]:
    """The sign that the process of the MLflow run ``run_id`` lives.

    Args:
        home: ``FACTSMITH_HOME``.
        run_id: id of the run in MLflow.
        content: ``uri`` of MLflow, and ``prefect``, the id of the flow run, if there is one.
    """
    return sign_of_life(_folder(home) / f"{run_id}.json", {"mlflow": run_id, **content})


def end_dead_runs(home: Path, uri: str, client: MlflowClient) -> None:
    """Mark runs whose process has died as killed, at the time at which it was last known to live."""
    from mlflow.exceptions import MlflowException

    for sign in dead(_folder(home)):
        if sign.content.get("mlflow_ended") or sign.content.get("uri") != uri:
            continue
        with suppress(MlflowException):  # It may have been deleted.
            run = client.get_run(sign.content["mlflow"])
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status="KILLED", end_time=round(sign.seen * 1000))
        note_ended(sign, mlflow_ended=True)


def any_dead(home: Path) -> bool:
    """Whether there are dead runs that MLflow does not know of."""
    return any(not sign.content.get("mlflow_ended") for sign in dead(_folder(home)))


def dead_in_prefect(home: Path) -> Iterator[SignOfLife]:
    """The signs of dead runs whose flow run nobody has marked in Prefect."""
    for sign in dead(_folder(home)):
        if sign.content.get("prefect") and not sign.content.get("prefect_ended"):
            yield sign


def note_ended(sign: SignOfLife, **ended: bool) -> None:
    """Note where a dead run has been marked. Its file is removed once it is marked in MLflow and in Prefect."""
    sign.write(**ended)
    content = sign.content
    done = content.get("mlflow_ended") and (content.get("prefect_ended") or not content.get("prefect"))
    if done or time.time() - sign.seen > _DAYS_TO_WAIT * 24 * 3600:
        sign.remove()
