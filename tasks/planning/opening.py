"""Opens the models that the settings of a run name. Weights are not read."""

from __future__ import annotations

from factsmith.tasks.model.gguf_stage import open_chosen
from factsmith.tasks.model.model import Model
from factsmith.tasks.model.settings import ModelSettings
from factsmith.tasks.pipeline.settings import RuntimeSettings
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["opened_beside", "opened_model"]


def opened_model(
    workspace: Workspace, settings: ModelSettings, runtime: RuntimeSettings, setting: str = "model.path"
) -> Model:
    """The model that ``settings`` name. ``setting`` is the one that gives its path, for messages.

    Raises:
        InputError: there is no such model, or it cannot be edited.
    """
    checksums = workspace.store.checksums.sha256_all
    return Model(open_chosen(workspace, settings, setting), settings, runtime, workspace.devices, checksums)


def opened_beside(workspace: Workspace, path: str | None, model: Model, setting: str) -> Model | None:
    """The model called ``path``, if there is one, in the data type of ``model``, on one device and not spread.

    Raises:
        InputError: there is no such model, or it is of a family that cannot be edited.
    """
    if path is None:
        return None
    settings = ModelSettings.model_validate({"name": path, "path": path, "dtype": model.dtype})
    spread = {"device_map": None, "gpu_memory_mb": None, "cpu_memory_mb": None}
    return opened_model(workspace, settings, workspace.runtime.model_copy(update=spread), setting)
