"""Stage ``export``: write an edit in a form that other programs can load, to a folder of the user's."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import allow_others, load_json, save_json
from factsmith.artifacts.manifest import code_versions
from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.edit.stage import REQUESTS
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.export.card import model_card
from factsmith.tasks.export.form import Form
from factsmith.tasks.ledger.ledger import Ledger, write_ledger
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["ABOUT", "CARD", "Exported", "export", "write_folder"]

ABOUT = "factsmith.json"
"""The file that says what an export is, for programs."""

CARD = "README.md"
"""The same for people and for the hub: its model card."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        out: the folder.
        form: the name of the form.
        edit: the address of the edit.
        size: bytes of its files.
        about: what its ``factsmith.json`` says.
    """

    out: Path
    form: str
    edit: str
    size: int
    about: Mapping[str, Any]


@stage("export")
def export(
    workspace: Workspace,
    model: Model,
    edit: Artifact,
    form: Form,
    out: Path,
    about: Mapping[str, Any],
    ledger: Ledger,
) -> Outcome[Exported]:
    """Write ``edit`` in a form to ``out``, which is new or empty. See ``write_folder``.

    ``factsmith.json`` and a model card beside the form's files name the edit, the facts that it holds, and what it is
    ``about``: the base model, the method, the settings and the scores.
    """
    said = {**about, "edit": edit.address, "facts": load_json(edit.path / REQUESTS)}
    out, said = write_folder(workspace, model, read_edit(edit), form, out, said, ledger)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    written = Exported(out, form.name, edit.address, size, said)
    return Outcome(written, edit.address, True, {"bytes": size}, {"out": str(out), "form": form.name})


def write_folder(
    workspace: Workspace,
    model: Model,
    edit: Edit,
    form: Form,
    out: Path,
    about: Mapping[str, Any],
    ledger: Ledger,
) -> tuple[Path, dict[str, Any]]:
    """Write a model's edit in a form to ``out``, which is new or empty. The folder appears only when it is complete.

    Args:
        workspace: the store, whose lock keeps other commands from ``out``.
        model: the unedited model.
        edit: the edit.
        form: the form.
        out: the folder.
        about: what ``factsmith.json`` says. If it says the facts of an edit, there is a model card too.
        ledger: the ledger of the edited model.

    Returns:
        The folder, resolved, and all that ``factsmith.json`` says.

    Raises:
        InputError: the form cannot hold the edit, a file of the model has changed since it was read, or another command
            has written to ``out``.
    """
    out = out.expanduser().resolve()
    name = f"export-{digest_of([str(workspace.store.root), str(out)])[:12]}"
    staging = out.with_name(f".factsmith-{name}")
    form.check(edit)
    said: dict[str, Any] = {
        **about,
        "form": form.name,
        "weights": model.fingerprint.weights,
        **({"revision": revision} if (revision := model.checkpoint.source[1]) else {}),
        "versions": code_versions(),
    }
    with resource_errors("Stage export", out.parent, workspace.runtime, "--out"), workspace.store.lock(name):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # A killed command has left it.
        try:
            staging.mkdir()
            said |= form.write(staging, model, edit, said)
            model.check_unchanged()
            for folder in {file.parent for file in staging.rglob("*.safetensors")}:
                allow_others(folder)
            save_json(staging / ABOUT, said)
            if "facts" in said:
                (staging / CARD).write_text(model_card(form, said), encoding="utf-8")
            write_ledger(staging, ledger.model_copy(update={"state": said.get("state")}))
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
    return out, said
