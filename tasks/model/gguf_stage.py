"""GGUF files in the store: each is dequantised once, into the artifact ``checkpoint``."""

from __future__ import annotations

import logging

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import allow_others
from factsmith.artifacts.recipe import Series
from factsmith.tasks.model.checkpoint import Checkpoint, open_checkpoint, open_model, refuse_revision
from factsmith.tasks.model.embedded import ASSETS
from factsmith.tasks.model.gguf import dequantise, find_gguf, is_gguf
from factsmith.tasks.model.settings import EMBEDDED, ModelSettings
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["open_chosen", "open_gguf"]

logger = logging.getLogger(__name__)


def open_chosen(workspace: Workspace, settings: ModelSettings, setting: str = "model.path") -> Checkpoint:
    """The checkpoint that ``settings`` choose: the embedded model, a GGUF file, a folder, or one on the hub.

    ``setting`` is the one that gives the path, for messages.

    Raises:
        InputError: there is none, or its model cannot be edited.
    """
    if settings.path == EMBEDDED:
        refuse_revision(EMBEDDED, settings.revision)
        return open_checkpoint(ASSETS)
    if is_gguf(settings.path):
        refuse_revision(settings.path, settings.revision)
        return open_gguf(workspace, settings.path)
    return open_model(settings.path, settings.revision, setting)


def open_gguf(workspace: Workspace, name: str) -> Checkpoint:
    """The checkpoint of the GGUF file called ``name``. The file is dequantised if the store does not have it yet.

    Raises:
        InputError: there is no such file, it cannot be read, or the model cannot be edited.
    """
    file, store = find_gguf(name), workspace.store
    checksum = store.checksums.sha256(file)

    def build(draft: Draft) -> None:
        logger.info("%s: dequantising the model; later runs find it in the store", name)
        draft.summary = {"gguf": file.name, **dequantise(file, draft.path, name)}
        allow_others(draft.path)
        if store.checksums.sha256(file) != checksum:
            raise InputError(
                f"{name} was written to while it was read.", remedy="run again when nothing writes to the model"
            )

    with resource_errors(f"Reading {name}", store.root, workspace.runtime):
        artifact, _ = store.get_or_build(Series("checkpoint", 1, {"gguf": checksum}).member(), build)
    return open_checkpoint(artifact.path)
