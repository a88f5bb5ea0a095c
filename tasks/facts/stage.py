"""Stage ``contexts``: the contexts that a fact is written in: sampled from the unedited model, given, or chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.formats import load_json, save_json
from factsmith.artifacts.recipe import Series
from factsmith.tasks.facts.contexts import TOP_K, ChatContext, Context, sample_contexts
from factsmith.tasks.facts.settings import ContextSettings
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Contexts", "context_series", "contexts"]

_TEMPLATES = "templates.json"


@dataclass(frozen=True)
class Contexts:
    """Contexts, the clean one first.

    Attributes:
        digest: digest of the artifact that holds them.
        templates: context templates, then chat contexts.
    """

    digest: str
    templates: tuple[Context, ...]


def context_series(
    model: Fingerprint, settings: ContextSettings, given: Sequence[str] | None, chat: Sequence[ChatContext] = ()
) -> Series:
    """The series of the one artifact that holds the contexts."""
    chats = {"chat": [asdict(one) for one in chat]} if chat else {}
    if given:
        return Series("contexts", 1, {"templates": list(given), **chats})
    parameters: dict[str, Any] = {
        "seed": settings.context_seed,
        "samples": [sample.model_dump() for sample in settings.context_samples],
        "top_k": TOP_K,
        **chats,
        **model.parameters,
    }
    return Series("contexts", 1, parameters, model.inputs)


@stage("contexts")
def contexts(
    workspace: Workspace,
    model: Model,
    settings: ContextSettings,
    given: Sequence[str] | None,
    chat: Sequence[ChatContext] = (),
) -> Outcome[Contexts]:
    """Sample context templates, or store the ones that are ``given``, with the chat contexts."""

    def build(draft: Draft) -> None:
        templates = given or sample_contexts(model.decoder, settings.context_samples, seed=settings.context_seed)
        draft.made = {**workspace.made, **model.made}
        draft.summary = {"templates": len(templates) + len(chat)}
        save_json(draft.path / _TEMPLATES, [*templates, *map(asdict, chat)])

    series = context_series(model.fingerprint, settings, given, chat)
    artifact, built = workspace.store.get_or_build(series.member(), build)
    stored = load_json(artifact.path / _TEMPLATES)
    templates = tuple(one if isinstance(one, str) else ChatContext(**one) for one in stored)
    return Outcome(Contexts(artifact.digest, templates), artifact.address, built, {"templates": len(templates)})
