"""Reading runs from MLflow's SQLite file, and moving it with its home.

Importing MLflow takes longer than all of this, so `factsmith runs` is quick.

Only tables that MLflow has had for years are read. Whoever calls this asks MLflow itself if they are not there.
"""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["StoredRun", "experiment_names", "flow_runs", "follow_home"]

_FLOWS = """
    FROM runs JOIN experiments USING (experiment_id)
    JOIN tags AS flow ON flow.run_uuid = runs.run_uuid AND flow.key = 'flow'
    WHERE runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
    AND (experiments.name = :experiment OR :experiment IS NULL)
"""
_RUNS = (
    "SELECT runs.run_uuid, runs.name, runs.status, runs.start_time, runs.artifact_uri"
    + _FLOWS
    + "ORDER BY runs.start_time DESC, runs.run_uuid"
)
_OF_FLOWS = " WHERE run_uuid IN (SELECT runs.run_uuid" + _FLOWS + ")"
_TAGS = "SELECT run_uuid, key, value FROM tags" + _OF_FLOWS  # noqa: S608 - constants
_PARAMS = "SELECT run_uuid, key, value FROM params" + _OF_FLOWS  # noqa: S608 - constants
_METRICS = "SELECT run_uuid, key, value, is_nan FROM latest_metrics" + _OF_FLOWS  # noqa: S608 - constants


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow stores it.

    Attributes:
        id: its id.
        name: its name.
        status: ``FINISHED``, ``FAILED``, ``RUNNING``, ...
        started: when it started, in milliseconds since the epoch.
        tags: its tags.
        params: its parameters.
        metrics: the last value of each metric.
        artifacts: the URI of the folder with its files.
    """

    id: str
    name: str
    status: str
    started: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    artifacts: str


def experiment_names(database: Path) -> list[str]:
    """The names of all experiments.

    Raises:
        sqlite3.Error: the file cannot be read, or has other tables.
    """
    with closing(_connect(database)) as connection:
        rows = connection.execute("SELECT name FROM experiments WHERE lifecycle_stage = 'active'")
        return [name for (name,) in rows]


def flow_runs(database: Path, experiment: str | None) -> list[StoredRun]:
    """The runs of flows in one experiment, or in all of them, latest first. Stages, which are runs too, are left out.

    Raises:
        sqlite3.Error: the file cannot be read, or has other tables.
    """
    which = {"experiment": experiment}
    with closing(_connect(database)) as connection:
        runs = connection.execute(_RUNS, which).fetchall()
        tags, params = (_by_run(connection.execute(query, which).fetchall()) for query in (_TAGS, _PARAMS))
        numbers = connection.execute(_METRICS, which).fetchall()
    metrics = _by_run([(run, key, math.nan if is_nan else value) for run, key, value, is_nan in numbers])
    return [
        StoredRun(run, name or "", status, started, tags[run], params[run], metrics[run], artifacts)
        for run, name, status, started, artifacts in runs
    ]


def follow_home(database: Path, folder: Path) -> None:
    """Say that the files of the runs are in ``folder``, if the home was moved. MLflow keeps absolute addresses.

    Without this, a run in a moved home would make the old one again and write its files there.

    Args:
        database: MLflow's SQLite file.
        folder: the folder of the same home with one folder for each experiment.

    Raises:
        sqlite3.Error: the file cannot be written, or has other tables.
    """
    with closing(_connect(database)) as connection:
        found = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
    moved = {}
    for experiment, name, location in found:
        here = (folder / name).as_uri()
        within_home = here.removeprefix(folder.parent.as_uri())
        if location and location.startswith("file:") and location.endswith(within_home) and location != here:
            moved[experiment] = (location, here)
    if not moved:
        return
    with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        for experiment, (before, here) in moved.items():
            which = (here, experiment)
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", which)
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? "
                "AND substr(artifact_uri, 1, ?) = ?",
                (here, len(before) + 1, experiment, len(before), before),
            )


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=10)


def _by_run(rows: Iterable[tuple[str, str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for run, key, value in rows:
        found[run][key] = value
    return found
