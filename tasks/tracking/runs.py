"""Earlier runs in MLflow: their settings, their edits and their scores.

This module imports neither Prefect nor torch, and MLflow only for runs that are not in a SQLite file, so that listing
runs is quick.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.tracking.dead_runs import any_dead
from factsmith.tasks.tracking.sqlite import StoredRun, experiment_names, flow_runs, follow_home
from factsmith.tasks.tracking.tracker import DATABASE, FILES, PARENT, connect, is_own, metric_name, tracking_uri

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ANSWERS",
    "EDITS",
    "LATEST",
    "RECORDS",
    "REPORT",
    "REPORT_MARK",
    "SCORE",
    "PastRun",
    "find_run",
    "past_runs",
]

ANSWERS = "answers.json"
"""The file of a run of the flow ``edit`` with the answers to its facts."""

EDITS = "edits.json"
"""The file that lists where the store keeps the edit of each batch."""

RECORDS = "records.parquet"
"""The file with one row per (phase, batch, record, metric): the record's mean of the metric, between 0 and 1."""

REPORT = "report.html"
"""The file with the report of the run."""

REPORT_MARK = '<meta name="generator" content="Factsmith">'
"""What the beginning of every such file contains."""

SCORE = "score"
"""The tag that names the metric which summarises the run."""

LATEST = "latest"
"""The name of the run that was started last."""

_SHORTEST = 4
"""The fewest characters of an abbreviated id."""

_LEFT = "artifact."
"""Begins the tags that say which artifact a stage left."""


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
        stages: address of the artifact or series that each stage left, by the stage's name.
        score: name and value of the metric that summarises the edited model, if the run was scored.
        tracking: the URI of MLflow.
        artifacts: the URI of the folder with its files.
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
    stages: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    tracking: str = field(default="", repr=False, compare=False)
    artifacts: str = field(default="", repr=False, compare=False)

    @property
    def content(self) -> dict[str, Any]:
        """The run's settings, nested, as they were when it ran.

        Raises:
            InputError: the run has kept none.
        """
        found: dict[str, Any] = self.document("config.json")
        return found

    @property
    def edits(self) -> list[str]:
        """Where the store keeps the edit of each batch.

        Raises:
            InputError: the run made no edit.
        """
        places: list[str] = self.document(EDITS)
        return places

    def document(self, name: str) -> Any:
        """A JSON file of the run.

        Raises:
            InputError: the run has no such file, or was killed while it wrote it.
        """
        try:
            return json.loads(self._text(name))
        except ValueError:
            raise InputError(f"{name} of run {self.id} cannot be read.", got=f"{self.name}, {self.status}") from None

    def has(self, name: str) -> bool:
        """Whether the run has a JSON file of this name."""
        try:
            self.document(name)
        except InputError:
            return False
        return True

    @property
    def report(self) -> str:
        """The run's report, as HTML.

        Raises:
            InputError: it has none.
        """
        return self._text(REPORT)

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
        """A file of the run, for as long as the context is open."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield self._local(name) or self._downloaded(name, Path(folder))
            except OSError:
                raise InputError(
                    f"Run {self.id} has no {name}.",
                    got=f"{self.name}, {self.status}",
                    remedy=None if self.status == "FINISHED" else "it has not finished; run it again to continue it",
                ) from None

    def _local(self, name: str) -> Path | None:
        """A file on this machine; ``None`` if the files of the run are elsewhere."""
        where = urlsplit(self.artifacts)
        return Path(unquote(where.path)) / name if where.scheme == "file" else None

    def _downloaded(self, name: str, folder: Path) -> Path:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            return Path(MlflowClient(tracking_uri=self.tracking).download_artifacts(self.id, name, str(folder)))
        except MlflowException as error:
            raise FileNotFoundError(name) from error


def past_runs(home: Path, experiment: str | None = None) -> list[PastRun]:
    """The runs of flows in one experiment, or in all of them, latest first.

    Raises:
        InputError: MLflow does not answer, or has no such experiment.
    """
    uri = tracking_uri(home)
    # To connect to MLflow marks dead runs, if it may be written to.
    if uri.startswith("sqlite:///") and not (any_dead(home) and os.access(home, os.W_OK)):
        if is_own(home):
            with suppress(sqlite3.Error):
                follow_home(home / DATABASE, home / FILES)
        # MLflow may have other tables one day. It is then asked itself.
        with suppress(sqlite3.Error):
            return _stored_runs(uri, experiment)
    return _searched_runs(home, experiment)


def _stored_runs(tracking: str, experiment: str | None) -> list[PastRun]:
    database = Path(tracking.removeprefix("sqlite:///"))
    _check_experiment(experiment, experiment_names(database))
    return [_past(run, tracking) for run in flow_runs(database, experiment)]


def _searched_runs(home: Path, experiment: str | None) -> list[PastRun]:
    client = connect(home)
    known = {one.name: one.experiment_id for one in client.search_experiments()}
    _check_experiment(experiment, known)
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
        for run in page:
            info, data = run.info, run.data
            stored = StoredRun(
                info.run_id,
                info.run_name or "",
                info.status,
                info.start_time,
                data.tags,
                data.params,
                data.metrics,
                info.artifact_uri,
            )
            found.append(_past(stored, tracking_uri(home)))
        token = page.token
        if not token:
            break
    return found


def _check_experiment(experiment: str | None, known: Iterable[str]) -> None:
    if experiment is not None and experiment not in known:
        raise InputError(f"There is no experiment {experiment!r}.", remedy=closest(experiment, known))


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


def _past(run: StoredRun, tracking: str) -> PastRun:
    score = run.tags.get(SCORE)
    value = run.metrics.get(f"after/{metric_name(score)}") if score else None
    return PastRun(
        id=run.id,
        name=run.name,
        flow=run.tags["flow"],
        started=datetime.fromtimestamp(run.started / 1000, UTC),
        status=run.status,
        params=dict(run.params),
        metrics=dict(run.metrics),
        parent=run.tags.get(PARENT),
        score=(score, value) if score and value is not None else None,
        stages={name.removeprefix(_LEFT): address for name, address in run.tags.items() if name.startswith(_LEFT)},
        tracking=tracking,
        artifacts=run.artifacts,
    )
