"""GGUF files in the store: each is dequantised once, into the artifact ``checkpoint``."""

from __future__ import annotations

import logging

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import allow_others
from factsmith.artifacts.recipe import Series
from factsmith.tasks.model.checkpoint import Checkpoint, open_checkpoint
from factsmith.tasks.model.gguf import dequantise, find_gguf
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["open_gguf"]

logger = logging.getLogger(__name__)


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
