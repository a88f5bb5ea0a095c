"""Stage ``export``: write an edited model as a Hugging Face checkpoint, with its memory beside it if it has one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import allow_others, load_json, save_json
from factsmith.artifacts.manifest import code_versions
from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.edit.edit import OTHER_EDIT, OTHER_TENSORS
from factsmith.tasks.edit.stage import REQUESTS
from factsmith.tasks.editors.load import BASE, SAID
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["export"]


@stage("export")
def export(workspace: Workspace, model: Model, edit: Artifact, out: Path, about: Mapping[str, Any]) -> Outcome[Path]:
    """Write the model with ``edit`` to ``out``, which is new or empty. The folder appears only when it is complete.

    A checkpoint cannot hold a memory. If the edit has one, the unedited model is written to a folder in ``out``, and
    the memory beside it as safetensors and JSON. ``load_edited`` reads both.

    ``factsmith.json`` beside the weights names the edit, the facts that it holds, and what it is ``about``: the base
    model, the method, the settings and the scores.

    Raises:
        InputError: a file of the model has changed since it was read, or another command has written to ``out``.
    """
    out = out.expanduser().resolve()
    name = f"export-{digest_of([str(workspace.store.root), str(out)])[:12]}"
    staging = out.with_name(f".factsmith-{name}")
    with resource_errors("Stage export", out.parent, workspace.runtime), workspace.store.lock(name):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # A killed command has left it.
        try:
            read = read_edit(edit)
            weights = staging / BASE if read.adds_memory else staging
            weights.mkdir(parents=True)
            with nullcontext() if read.adds_memory else read.applied(model.decoder):
                model.decoder.save(weights)
            allow_others(weights)
            model.checkpoint.copy_tokenizer(weights)
            model.check_unchanged()
            if read.adds_memory:
                for name in (OTHER_EDIT, OTHER_TENSORS):
                    shutil.copyfile(edit.path / name, staging / name)
            save_json(
                staging / "factsmith.json",
                {
                    **about,
                    **({"load": SAID} if read.adds_memory else {}),
                    "edit": edit.address,
                    "facts": load_json(edit.path / REQUESTS),
                    "weights": model.fingerprint.weights,
                    "versions": code_versions(),
                },
            )
            try:
                staging.rename(out)  # An empty folder is replaced.
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                raise InputError(
                    f"{out} exists already.", got="files of another command", remedy="give another --out"
                ) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Outcome(out, edit.address, True, {"bytes": size}, {"out": str(out)})
