"""One MLflow run for each run of the pipeline, with a child run for each stage.

Every call passes the run's id. MLflow's active run is local to a thread, and a stray active run would receive whatever
is logged next.

Importing MLflow takes more than a second. It is imported where it is used, because not every command needs it.

MLflow takes a tenth of a second to write a stage, most of it waiting for the disk. Stages are written by a thread of
their own, so that a run does not wait; ``end`` waits for what is not yet written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factsmith.artifacts.errors import InputError
from factsmith.tasks.tracking.dead_runs import end_dead_runs
from factsmith.tasks.tracking.sqlite import follow_home

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "DATABASE",
    "FILES",
    "PARENT",
    "Tracker",
    "connect",
    "flatten",
    "metric_name",
    "open_experiment",
    "tracking_uri",
]

PARENT = "mlflow.parentRunId"
"""The tag that makes MLflow show a run below another."""

DATABASE = "mlflow.db"
"""The SQLite file in the home that holds the runs."""

FILES = "mlruns"
"""The folder in the home that holds their files."""

_MAKING = ".mlflow-"
"""Begin of the name of the folder in which the SQLite file is made."""

_NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run, in Markdown."""

_METRICS_PER_CALL = 1000
"""MLflow's limit."""


def tracking_uri(home: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or a SQLite file in ``home``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / DATABASE}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: ``method.value.steps`` -> ``"25"``."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = "null" if value is None else str(value)
    return flat


def connect(home: Path) -> MlflowClient:
    """A client of the MLflow store or server. Runs in ``home`` whose process has died are marked as killed.

    Raises:
        InputError: it does not answer.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri(home)
    if is_own(home):
        _prepare_database(home)
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except SQLAlchemyError as error:
        raise InputError(
            f"MLflow's database {uri} cannot be used.",
            got=str(error).splitlines()[0][:200],
            remedy=f"move {home / DATABASE} away: runs are then logged to a new one, and artifacts stay",
        ) from error
    except MlflowException as error:
        raise InputError(
            f"MLflow at {uri} does not answer.",
            got=str(error).splitlines()[0][:200],
            remedy="start the server, or unset MLFLOW_TRACKING_URI to log to a file",
        ) from None
    end_dead_runs(home, uri, client)
    return client


def is_own(home: Path) -> bool:
    """Whether runs are kept in a SQLite file in ``home``."""
    return tracking_uri(home) == f"sqlite:///{home / DATABASE}"


def _prepare_database(home: Path) -> None:
    """Make the SQLite file if there is none, and make it follow a home that was moved.

    MLflow makes its tables one by one, and cannot use a file in which some are missing. The file therefore appears when
    it is complete.

    Raises:
        InputError: the file cannot be used.
    """
    from mlflow.store.tracking import sqlalchemy_store

    open_store: Any = sqlalchemy_store.SqlAlchemyStore
    database = home / DATABASE
    if database.exists():
        with suppress(sqlite3.Error):  # MLflow says what is wrong with it.
            follow_home(database, home / FILES)
        return
    home.mkdir(parents=True, exist_ok=True)
    for killed in home.glob(f"{_MAKING}*"):
        shutil.rmtree(killed, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_MAKING, dir=home))
    try:
        made = folder / DATABASE
        open_store(f"sqlite:///{made}", (home / FILES).as_uri()).engine.dispose()
        with suppress(FileExistsError):  # Another process was quicker.
            os.link(made, database)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_experiment(client: MlflowClient, home: Path, name: str) -> str:
    """The id of an experiment, which is created if it does not exist."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A server chooses the artifact folder itself. A SQLite file needs an explicit one.
    embedded = tracking_uri(home).startswith("sqlite:")
    location = (home / FILES / name).as_uri() if embedded else None
    return str(client.create_experiment(name, artifact_location=location))


class Tracker:
    """Logs one run.

    Args:
        home: folder for the default SQLite file.
        experiment: name of the MLflow experiment.
        name: name of the run.
        flow: the flow that starts the run.
        settings: the run's settings, nested.
        note: what the run does, in Markdown.
        parent: id of the run that this one is a part of. Cached stages of such a run get no child run, because a sweep
            would have thousands of them.
    """

    def __init__(
        self,
        home: Path,
        *,
        experiment: str,
        name: str,
        flow: str,
        settings: Mapping[str, Any],
        note: str = "",
        parent: str | None = None,
    ) -> None:
        from mlflow import MlflowClient

        self.uri = tracking_uri(home)
        self.client = connect(home) if parent is None else MlflowClient(tracking_uri=self.uri)
        self.name = name
        self._is_part = parent is not None
        self._notes = [note] if note else []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._unwritten: list[Future[None]] = []
        self.experiment = open_experiment(self.client, home, experiment)
        described = {_NOTE: note} if note else {}
        self.run_id = self._start(name, {"flow": flow, **described, **({PARENT: parent} if parent else {})})
        self._log(self.run_id, params=flatten(settings))
        self.document(dict(settings), "config.json")

    def stage(
        self, name: str, *, started: float, metrics: Mapping[str, float], tags: Mapping[str, str], failed: bool
    ) -> None:
        """Log a finished stage as a child run. ``started`` is in seconds since the epoch."""
        if self._is_part and tags["state"] == "cached":
            return
        ended = time.time()

        def write() -> None:
            run_id = self._start(name, {PARENT: self.run_id, **tags, "stage": name}, started)
            self._log(run_id, metrics=metrics)
            self._terminate(run_id, failed=failed, ended=ended)

        self._later(write)

    def dataset(self, name: str, *, digest: str, source: str, facts: int) -> None:
        """Log the facts that the run reads.

        Args:
            name: the dataset's name.
            digest: digest of the facts.
            source: path of their file, or the name of their format if they have none.
            facts: number of facts.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, where = ("local", {"uri": source}) if os.path.exists(source) else ("code", {"tags": {"dataset": source}})
        dataset = Dataset(name, digest[:36], kind, json.dumps(where), profile=json.dumps({"num_rows": facts}))
        read = DatasetInput(dataset, [InputTag("mlflow.data.context", "edit")])
        self._later(lambda: self.client.log_inputs(self.run_id, [read]))

    def note(self, text: str) -> None:
        """Add a paragraph to the description of the whole run. It is written when the run ends."""
        self._notes.append(text)

    def metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Log metrics of the whole run, without those that are ``None``."""
        self._log(self.run_id, metrics={name: value for name, value in metrics.items() if value is not None})

    def curves(self, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Log metrics at several steps each. MLflow draws them as lines."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [
            Metric(metric_name(name), value, now, step)
            for name, points in curves.items()
            for step, value in points.items()
        ]
        for first in range(0, len(metrics), _METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + _METRICS_PER_CALL])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Log tags of the whole run."""
        self._log(self.run_id, tags=tags)

    def file(self, path: Path, folder: str | None = None, *, name: str | None = None) -> None:
        """Attach a file to the run, in ``folder``, under its own name or under ``name``."""
        if name is None:
            self.client.log_artifact(self.run_id, str(path), folder)
            return
        with tempfile.TemporaryDirectory() as temporary:
            self.client.log_artifact(self.run_id, str(shutil.copyfile(path, Path(temporary) / name)), folder)

    def document(self, content: Any, name: str) -> None:
        """Attach ``content`` as JSON."""
        self.client.log_text(self.run_id, json.dumps(content, indent=1, ensure_ascii=False), name)

    def text(self, text: str, name: str) -> None:
        """Attach a text."""
        self.client.log_text(self.run_id, text, name)

    def figure(self, figure: Any, name: str) -> None:
        """Attach a Matplotlib figure."""
        self.client.log_figure(self.run_id, figure, name)

    def end(
        self, *, failed: bool, metrics: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Mark the run as finished or failed, and log its last metrics and tags."""
        self._thread.shutdown()
        note = {_NOTE: "\n\n".join(self._notes)} if self._notes else {}
        self._log(self.run_id, metrics=metrics, tags={**(tags or {}), **note})
        self._terminate(self.run_id, failed=failed)
        for written in self._unwritten:
            written.result()  # raises what the thread could not write

    def _later(self, write: Callable[[], None]) -> None:
        self._unwritten.append(self._thread.submit(write))

    def _terminate(self, run_id: str, *, failed: bool, ended: float | None = None) -> None:
        status, end_time = "FAILED" if failed else "FINISHED", round((ended or time.time()) * 1000)
        self.client.set_terminated(run_id, status=status, end_time=end_time)

    def _start(self, name: str, tags: Mapping[str, str], started: float | None = None) -> str:
        about = {"mlflow.source.name": "factsmith", "mlflow.user": os.environ.get("USER", "factsmith")}
        run = self.client.create_run(
            self.experiment,
            start_time=round((started or time.time()) * 1000),
            run_name=name,
            tags={tag: value[:5000] for tag, value in {**tags, **about}.items()},
        )
        return str(run.info.run_id)

    def _log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = round(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[Metric(metric_name(name), float(value), now, 0) for name, value in (metrics or {}).items()],
            params=[Param(name, value[:6000]) for name, value in (params or {}).items()],
            tags=[RunTag(name, value[:5000]) for name, value in (tags or {}).items()],
        )


def metric_name(metric: str) -> str:
    """The name of a metric in MLflow, which allows letters, digits and ``_-. :/`` only."""
    return re.sub(r"[^\w\-. :/]", "_", metric.replace("*", "_star").replace("=", ":").replace(", ", " "))
