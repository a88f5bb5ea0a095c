"""Stage ``contexts``: the templates a fact is written in, sampled from the unedited model or given."""

from __future__ import annotations

from dataclasses import dataclass

from factsmith.artifacts.formats import load_json, save_json
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Draft
from factsmith.tasks.facts.contexts import TOP_K, sample_contexts
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["Contexts", "context_series", "contexts"]


@dataclass(frozen=True)
class Contexts:
    """Context templates, the clean one first.

    Attributes:
        digest: of the artifact that keeps them.
        templates: each with one ``{}`` for the prompt.
    """

    digest: str
    templates: tuple[str, ...]


def context_series(bench: Bench, model: ModelName) -> Series:
    """The one artifact that keeps the templates."""
    if bench.given_contexts:
        return Series("contexts", 1, {"templates": list(bench.given_contexts)})
    method = bench.settings.method
    parameters = {
        "seed": method.context_seed,
        "samples": [sample.model_dump() for sample in method.context_samples],
        "top_k": TOP_K,
        **model.parameters,
    }
    return Series("contexts", 1, parameters, model.inputs)


@stage("contexts")
def contexts(bench: Bench, model: ModelName) -> Outcome[Contexts]:
    """Sample the context templates, or keep the ones of ``method.contexts``."""
    method = bench.settings.method

    def build(draft: Draft) -> None:
        templates = bench.given_contexts or sample_contexts(
            bench.decoder, method.context_samples, seed=method.context_seed
        )
        draft.made = bench.made
        draft.summary = {"templates": len(templates)}
        save_json(draft.path / "templates.json", list(templates))

    artifact, built = bench.store.get_or_build(context_series(bench, model).member(), build)
    templates = tuple(load_json(artifact.path / "templates.json"))
    return Outcome(Contexts(artifact.digest, templates), artifact.address, built, {"templates": len(templates)})
