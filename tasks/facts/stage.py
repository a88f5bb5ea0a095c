"""Stage ``contexts``: the templates that a fact is written in, sampled from the unedited model or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.formats import load_json, save_json
from factsmith.artifacts.recipe import Series
from factsmith.tasks.facts.contexts import TOP_K, sample_contexts
from factsmith.tasks.facts.settings import ContextSettings
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Contexts", "context_series", "contexts"]

_TEMPLATES = "templates.json"


@dataclass(frozen=True)
class Contexts:
    """Context templates, the clean one first.

    Attributes:
        digest: digest of the artifact that holds them.
        templates: each with one ``{}`` for the prompt.
    """

    digest: str
    templates: tuple[str, ...]


def context_series(model: Fingerprint, settings: ContextSettings, given: Sequence[str] | None) -> Series:
    """The series of the one artifact that holds the templates."""
    if given:
        return Series("contexts", 1, {"templates": list(given)})
    parameters = {
        "seed": settings.context_seed,
        "samples": [sample.model_dump() for sample in settings.context_samples],
        "top_k": TOP_K,
        **model.parameters,
    }
    return Series("contexts", 1, parameters, model.inputs)


@stage("contexts")
def contexts(
    workspace: Workspace, model: Model, settings: ContextSettings, given: Sequence[str] | None
) -> Outcome[Contexts]:
    """Sample context templates, or store the ones that are ``given``."""

    def build(draft: Draft) -> None:
        templates = given or sample_contexts(model.decoder, settings.context_samples, seed=settings.context_seed)
        draft.made = {**workspace.made, **model.made}
        draft.summary = {"templates": len(templates)}
        save_json(draft.path / _TEMPLATES, list(templates))

    series = context_series(model.fingerprint, settings, given)
    artifact, built = workspace.store.get_or_build(series.member(), build)
    templates = tuple(load_json(artifact.path / _TEMPLATES))
    return Outcome(Contexts(artifact.digest, templates), artifact.address, built, {"templates": len(templates)})
