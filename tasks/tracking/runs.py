"""Earlier runs in MLflow: their settings, their edits and their scores.

This module imports neither Prefect nor torch, so that listing runs is quick.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.tracking.tracker import PARENT, connect, metric_name

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EDITS", "LATEST", "RECORDS", "SCORE", "PastRun", "find_run", "past_runs"]

EDITS = "edits.json"
"""The file that lists where the store keeps the edit of each batch."""

RECORDS = "records.parquet"
"""The file with one row per (phase, batch, record, metric): the record's mean of the metric, between 0 and 1."""

SCORE = "score"
"""The tag that names the metric which summarises the run."""

LATEST = "latest"
"""The name of the run that was started last."""

_SHORTEST = 4
"""The fewest characters of an abbreviated id."""


@dataclass(frozen=True)
class PastRun:
    """An earlier run of a flow.

    Attributes:
        id: its id in MLflow.
        name: its name in MLflow.
        flow: the flow that started it.
        started: when it started.
        status: ``FINISHED``, ``FAILED``, ``RUNNING``, ...
        params: its settings, flat, as text.
        metrics: the last value of each metric.
        parent: id of the run that this one is a part of.
        score: name and value of the metric that summarises the edited model, if the run was scored.
    """

    id: str
    name: str
    flow: str
    started: datetime
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    parent: str | None
    score: tuple[str, float] | None
    _client: MlflowClient = field(repr=False, compare=False)

    @property
    def content(self) -> dict[str, Any]:
        """The run's settings, nested, as they were when it ran.

        Raises:
            InputError: the run has kept none.
        """
        found: dict[str, Any] = json.loads(self._text("config.json"))
        return found

    @property
    def edits(self) -> list[str]:
        """Where the store keeps the edit of each batch.

        Raises:
            InputError: the run made no edit.
        """
        places: list[str] = json.loads(self._text(EDITS))
        return places

    def records(self) -> pa.Table:
        """The score of each record: ``phase``, ``batch``, ``record``, ``case_id``, ``metric``, ``value``.

        Raises:
            InputError: nothing was scored.
        """
        from factsmith.artifacts.formats import load_table

        with self._file(RECORDS) as path:
            return load_table(path)

    def _text(self, name: str) -> str:
        with self._file(name) as path:
            return path.read_text(encoding="utf-8")

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """Download a file of the run, for as long as the context is open."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield Path(self._client.download_artifacts(self.id, name, folder))
            except (MlflowException, OSError):
                raise InputError(
                    f"Run {self.id} has no {name}.",
                    got=f"{self.name}, {self.status}",
                    remedy=None if self.status == "FINISHED" else "it has not finished; run it again to continue it",
                ) from None


def past_runs(home: Path, experiment: str | None = None) -> list[PastRun]:
    """The runs of flows in one experiment, or in all of them, latest first.

    Raises:
        InputError: MLflow does not answer, or has no such experiment.
    """
    client = connect(home)
    known = {one.name: one.experiment_id for one in client.search_experiments()}
    if experiment is not None and experiment not in known:
        raise InputError(f"There is no experiment {experiment!r}.", remedy=closest(experiment, known))
    experiments = [identifier for name, identifier in known.items() if experiment in (None, name)]
    found: list[PastRun] = []
    token: str | None = None
    while experiments:
        # Stages are runs too. They are children of a flow's run and have no such tag.
        page = client.search_runs(
            experiments,
            "tags.flow LIKE '%'",
            order_by=["attributes.start_time DESC"],
            max_results=1000,
            page_token=token,
        )
        found += [_past(run, client) for run in page]
        token = page.token
        if not token:
            break
    return found


def find_run(home: Path, name: str) -> PastRun:
    """The run called ``name``: ``latest``, or an MLflow id, whole or abbreviated.

    Raises:
        InputError: no run, or more than one, has that name.
    """
    runs = past_runs(home)
    abbreviated = name if len(name) >= _SHORTEST else None
    matches = runs[:1] if name == LATEST else [run for run in runs if abbreviated and run.id.startswith(abbreviated)]
    if len(matches) != 1:
        raise InputError(
            f"{len(matches) or 'No'} runs match {name!r}.",
            got=", ".join(run.id for run in matches[:5]) or None,
            expected=f"{LATEST}, or an id as `factsmith runs` shows it",
        )
    return matches[0]


def _past(run: Run, client: MlflowClient) -> PastRun:
    score = run.data.tags.get(SCORE)
    value = run.data.metrics.get(f"after/{metric_name(score)}") if score else None
    return PastRun(
        id=run.info.run_id,
        name=run.info.run_name or "",
        flow=run.data.tags["flow"],
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        status=run.info.status,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        parent=run.data.tags.get(PARENT),
        score=(score, value) if score and value is not None else None,
        _client=client,
    )
