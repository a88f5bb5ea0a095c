"""Stage ``inference``: what an edit with a memory costs whenever the edited model is used."""

from __future__ import annotations

from collections.abc import Sequence

from factsmith.artifacts.artifact import Artifact
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.editors.inference import Inference, inference_cost
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.model import Model
from factsmith.tasks.model.stage import cost_of
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["inference"]

_MOST_PROMPTS = 16


@stage("inference")
def inference(
    workspace: Workspace, model: Model, edit: Artifact, requests: Sequence[EditRequest]
) -> Outcome[Inference]:
    """Compare a pass of the facts' prompts with and without an edit. A time is not stored, so it is measured each time.

    Args:
        workspace: the run's workspace.
        model: the unedited model.
        edit: the edit.
        requests: its facts, of which the first ones are used.
    """
    prompts = [encode_prompt(model.tokenizer, one.prompt).tokens for one in requests[:_MOST_PROMPTS]]
    longest = max(map(len, prompts))
    prompts = prompts[: max(1, model.limits.most_tokens // longest)]
    found = inference_cost(model.decoder, read_edit(edit), prompts, cost_of(workspace, model))
    return Outcome(found, edit.address, True, {"prompts": found.prompts})
