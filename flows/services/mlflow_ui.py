"""Where MLflow's UI shows runs with their scores.

Left to itself, the UI opens an experiment on pages for chat applications, and its list of runs shows no metric before
each user has picked some. An address leads past both: it names the pages for training, and a view that the UI keeps as
a tag of the experiment.
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
_SETTINGS = ("model.name", "method.name", "dataset.name", "method.batch_size")


def score_pages(uri: str) -> dict[str, str]:
    """Pages of all experiments that hold runs, by name, the one used last first; each is given the view.

    Args:
        uri: where MLflow keeps runs.

    Returns:
        Paths below the server's address.

    Raises:
        InputError: nothing can be read there.
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
    """A saved view as MLflow's UI reads it: what sums up each family of metrics, and what people compare by."""
    metrics = [name for one in load_families() for name in ([one.mean[0], *one.mean[1]] if one.mean else one.metrics)]
    columns = [f"metrics.`after/{name}`" for name in metrics] + [f"params.`{name}`" for name in _SETTINGS]
    state = {"selectedColumns": columns}
    return json.dumps({"name": "Scores", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
