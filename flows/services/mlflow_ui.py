"""Addresses at which MLflow's UI shows runs with their scores.

By default, the UI opens an experiment on pages for chat applications, and its list of runs shows no metrics until the
user picks some. The addresses name the pages for training, and a view with the scores, which is stored as a tag of the
experiment.
"""

from __future__ import annotations

import json

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from factsmith.artifacts.errors import InputError
from factsmith.tasks.evaluation.family import load_families

__all__ = ["score_pages"]

_VIEW = "scores"
_SETTINGS = ("params.`method.name`", "tags.`d_m`", "params.`method.batch_size`")
"""The columns before the scores."""

_NAMES = ("params.`model.name`", "params.`dataset.name`")
"""The columns after them."""


def score_pages(uri: str) -> dict[str, str]:
    """The pages of all experiments that have runs, by name, the last used one first. Stores the view in each of them.

    Args:
        uri: MLflow's tracking URI.

    Returns:
        Paths below the server's address.

    Raises:
        InputError: MLflow cannot read the URI.
    """
    try:
        client = MlflowClient(tracking_uri=uri)
        used = {}
        for experiment in client.search_experiments():
            for run in client.search_runs([experiment.experiment_id], max_results=1):  # the latest
                used[experiment.name] = (run.info.start_time, experiment.experiment_id)
        for _, place in used.values():
            client.set_experiment_tag(place, f"mlflow.sharedViewState.{_VIEW}", _view())
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InputError(
            f"MLflow cannot read {uri}.",
            got=str(error).splitlines()[0][:200],
            remedy="set MLFLOW_TRACKING_URI, or unset it for the runs below FACTSMITH_HOME",
        ) from None
    return {
        name: f"/#/experiments/{place}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"
        for name, (_, place) in sorted(used.items(), key=lambda item: item[1], reverse=True)
    }


def _view() -> str:
    """A saved view in the format of MLflow's UI: the main scores of each metric family, and the main settings."""
    metrics = [name for one in load_families() for name in ([one.mean[0], *one.mean[1]] if one.mean else one.metrics)]
    columns = [*_SETTINGS, *(f"metrics.`after/{name}`" for name in metrics), *_NAMES]
    state = {"selectedColumns": columns}
    return json.dumps({"name": "Scores", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
