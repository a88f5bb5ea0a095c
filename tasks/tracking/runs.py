"""Runs that MLflow has kept: what they were told, what they wrote, what they scored.

Loads neither Prefect nor torch: whoever lists runs does not wait for them.
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
from pydantic import ValidationError

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.tracking.tracker import PARENT, connect, metric_name

if TYPE_CHECKING:
    import pyarrow as pa

    from factsmith.tasks.planning.settings import Settings

__all__ = ["EDITS", "LATEST", "RECORDS", "SCORE", "PastRun", "find_run", "past_runs"]

EDITS = "edits.json"
"""Where the edits of a run's batches are in the store, in the order of the batches."""

RECORDS = "records.parquet"
"""One row a (phase, batch, record, metric): the record's mean of the metric, 1 being all."""

SCORE = "score"
"""Tag that names the metric a run is summed up in."""

LATEST = "latest"
"""Stands for the run that was started last."""

_SHORTEST = 4
"""Letters of an abbreviated id at least."""


@dataclass(frozen=True)
class PastRun:
    """A run of a flow.

    Attributes:
        id: in MLflow.
        name: shown there.
        flow: that began it.
        started: when.
        status: ``FINISHED``, ``FAILED``, ``RUNNING``, ...
        params: settings, flat, as text.
        metrics: the last of each.
        parent: id of the run that this one is a part of.
        score: name and value of what sums the run up after its edit, if it was scored.
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
        """The run's settings, nested.

        Raises:
            InputError: it has kept none.
        """
        found: dict[str, Any] = json.loads(self._text("config.json"))
        return found

    @property
    def settings(self) -> Settings:
        """The run's settings.

        Raises:
            InputError: it has kept none, or another version of Factsmith has.
        """
        from factsmith.tasks.planning.settings import Settings

        try:
            return Settings.model_validate(self.content)
        except ValidationError as error:
            raise InputError(
                f"The settings of run {self.id} cannot be used.",
                got=f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}",
                remedy="it was made by another version of Factsmith: run it again",
            ) from None

    @property
    def edits(self) -> list[str]:
        """Places of the run's edits in the store, in the order of its batches.

        Raises:
            InputError: it has made none.
        """
        places: list[str] = json.loads(self._text(EDITS))
        return places

    def records(self) -> pa.Table:
        """What each record scored: ``phase``, ``batch``, ``record``, ``case_id``, ``metric``, ``value``.

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
        """A file that was attached to the run, brought here for as long as this is open."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield Path(self._client.download_artifacts(self.id, name, folder))
            except (MlflowException, OSError):
                raise InputError(
                    f"Run {self.id} has no {name}.",
                    got=f"{self.name}, {self.status}",
                    remedy=None if self.status == "FINISHED" else "it has not finished; run it again, and it goes on",
                ) from None


def past_runs(home: Path, experiment: str | None = None) -> list[PastRun]:
    """The runs of flows, the latest first; those of one experiment, or of all.

    Raises:
        InputError: MLflow does not answer, or has no such experiment.
    """
    client = connect(home)
    known = {one.name: one.experiment_id for one in client.search_experiments()}
    if experiment is not None and experiment not in known:
        raise InputError(f"There is no experiment {experiment!r}.", remedy=closest(experiment, known))
    places = [place for name, place in known.items() if experiment in (None, name)]
    found: list[PastRun] = []
    token: str | None = None
    while places:
        # Stages are runs too, below those of flows, and carry no such tag.
        page = client.search_runs(
            places, "tags.flow LIKE '%'", order_by=["attributes.start_time DESC"], max_results=1000, page_token=token
        )
        found += [_past(run, client) for run in page]
        token = page.token
        if not token:
            break
    return found


def find_run(home: Path, word: str) -> PastRun:
    """The run that ``word`` names: ``latest``, or its id in MLflow, abbreviated or whole.

    Raises:
        InputError: none, or more than one.
    """
    runs = past_runs(home)
    abbreviated = word if len(word) >= _SHORTEST else None
    named = runs[:1] if word == LATEST else [run for run in runs if abbreviated and run.id.startswith(abbreviated)]
    if len(named) != 1:
        raise InputError(
            f"{len(named) or 'No'} runs go by {word!r}.",
            got=", ".join(run.id for run in named[:5]) or None,
            expected=f"{LATEST}, or an id as `factsmith runs` shows it",
        )
    return named[0]


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
