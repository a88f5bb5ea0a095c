"""Stage ``truncation``: an edit of lower rank, which is scored and exported like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_json
from factsmith.artifacts.recipe import Series
from factsmith.tasks.edit.stage import REQUESTS, save_edit
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.export.thin import thin_edit
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Truncated", "TruncatedChange", "truncation"]

_PLACES = "truncated"


@dataclass(frozen=True)
class TruncatedChange:
    """What truncation did to the change of one weight.

    Attributes:
        place: the weight, as messages call it.
        rank: the rank that it has now.
        of: the rank that it had.
        error: Frobenius norm of what was dropped, divided by that of the change.
    """

    place: str
    rank: int
    of: int
    error: float


@dataclass(frozen=True)
class Truncated:
    """A truncated edit.

    Attributes:
        edit: its artifact.
        changes: what was done to each change.
    """

    edit: Artifact
    changes: list[TruncatedChange]


@stage("truncation")
def truncation(workspace: Workspace, model: Model, edit: Artifact, rank: int) -> Outcome[Truncated]:
    """The edit with the best approximation of every change by one of this rank at most.

    Args:
        workspace: the run's workspace.
        model: the unedited model.
        edit: the edit.
        rank: the rank.

    Raises:
        InputError: the edit has a memory.
    """
    inputs = {**model.fingerprint.inputs, "edit": edit.digest}
    recipe = Series("edit", 1, {"rank": rank}, inputs).member(**edit.key)

    def build(draft: Draft) -> None:
        draft.read_from(edit)
        thinned, found = thin_edit(read_edit(edit), rank)
        save_edit(draft, thinned, [EditRequest(**fact) for fact in load_json(edit.path / REQUESTS)])
        draft.summary[_PLACES] = {
            place: {"rank": one.delta.rank, "of": one.full_rank, "error": one.error} for place, one in found.items()
        }

    artifact, built = workspace.store.get_or_build(recipe, build)
    stored: Mapping[str, Mapping[str, float]] = artifact.summary[_PLACES]
    changes = [TruncatedChange(place, int(one["rank"]), int(one["of"]), one["error"]) for place, one in stored.items()]
    worst = max(one.error for one in changes)
    metrics = {"error": worst, "facts": artifact.summary["facts"]}
    return Outcome(Truncated(artifact, changes), artifact.address, built, metrics)
