"""MLflow's UI: how it is started, and the addresses at which it shows runs with their scores.

By default, the UI opens an experiment on pages for chat applications, and its list of runs shows no metrics until the
user picks some. The addresses name the pages for training, and a view with the scores, which is stored as a tag of the
experiment.
"""

from __future__ import annotations

import json
import os
import socket

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from factsmith.artifacts.errors import InputError
from factsmith.tasks.evaluation.family import load_families

__all__ = ["HOST", "check_port", "mlflow_command", "mlflow_environment", "score_page", "score_pages"]

HOST = "127.0.0.1"

_VIEW = "scores"
_SETTINGS = ("params.`method.name`", "params.`method.batch_size`", "params.`model.name`", "tags.`d_m`")
"""The columns beside the scores. MLflow puts all metrics first, then parameters, then tags."""


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
        pages = {name: score_page(client, used[name][1]) for name in sorted(used, key=lambda name: used[name])}
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InputError(
            f"MLflow cannot read {uri}.",
            got=str(error).splitlines()[0][:200],
            remedy="set MLFLOW_TRACKING_URI, or unset it for the runs below FACTSMITH_HOME",
        ) from None
    return dict(reversed(pages.items()))


def check_port(port: int, option: str) -> None:
    """
    Raises:
        InputError: somebody listens at the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # A port that was just closed counts as free.
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"Port {port} of {HOST} cannot be used.", got=error.strerror, remedy=f"choose another with {option}"
            ) from None


def mlflow_command(uri: str, port: int) -> list[str]:
    """The arguments of ``mlflow`` that start its UI."""
    return ["server", "--backend-store-uri", uri, "--host", HOST, "--port", str(port), "--workers", "1"]


def mlflow_environment() -> dict[str, str]:
    """The environment of MLflow's UI. Its job workers would be eight more processes that nothing uses."""
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")}


def score_page(client: MlflowClient, experiment: str) -> str:
    """The page of one experiment, given by its id, as ``score_pages`` gives it. Stores the view in it."""
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{_VIEW}", _view())
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"


def _view() -> str:
    """A saved view in the format of MLflow's UI: the main scores of each metric family, and the main settings."""
    metrics = [name for one in load_families() for name in ([one.mean[0], *one.mean[1]] if one.mean else one.metrics)]
    columns = [*(f"metrics.`after/{name}`" for name in metrics), *_SETTINGS]
    state = {"selectedColumns": columns}
    return json.dumps({"name": "Scores", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
