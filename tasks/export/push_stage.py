"""Stage ``push``: a finished export as a commit on the hub."""

from __future__ import annotations

from pathlib import Path

from factsmith.tasks.export.hub import Push, push_folder
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["push"]


@stage("push")
def push(workspace: Workspace, edit: str, folder: Path, where: Push) -> Outcome[str]:
    """Upload an export. Returns the address of its commit.

    Args:
        workspace: the run's workspace.
        edit: the address of the edit that it holds.
        folder: the export.
        where: where to.

    Raises:
        InputError: the hub refuses it or does not answer.
    """
    address = push_folder(where, folder, f"{edit} of Factsmith")
    return Outcome(address, edit, True, tags={"pushed": address})
