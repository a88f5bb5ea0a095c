"""Stage ``contexts``: the templates a fact is written in, sampled from the unedited model or given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_json, save_json
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Draft
from factsmith.tasks.bench import Bench
from factsmith.tasks.editing.contexts import CLEAN, LENGTH, STARTS, TOP_K, sample_contexts
from factsmith.tasks.model import ModelName
from factsmith.tasks.models.text import PLACEHOLDER
from factsmith.tasks.records.reading import read_json
from factsmith.tasks.stage import Outcome, stage

__all__ = ["Contexts", "contexts", "read_contexts"]


@dataclass(frozen=True)
class Contexts:
    """Context templates, the clean one first.

    Attributes:
        digest: of the artifact that keeps them.
        templates: each with one ``{}`` for the prompt.
    """

    digest: str
    templates: tuple[str, ...]


@stage("contexts")
def contexts(bench: Bench, model: ModelName) -> Outcome[Contexts]:
    """Sample the context templates, or keep the ones of ``method.contexts``."""
    method = bench.settings.method
    given = read_contexts(method.contexts) if method.contexts else None
    if given:
        series = Series("contexts", 1, {"templates": list(given)})
    else:
        series = Series(
            "contexts",
            1,
            {
                "seed": method.context_seed,
                "starts": list(STARTS),
                "length": LENGTH,
                "top_k": TOP_K,
                **model.parameters,
            },
            model.inputs,
        )

    def build(draft: Draft) -> None:
        templates = given or sample_contexts(bench.decoder, seed=method.context_seed)
        draft.made = bench.made
        draft.summary = {"templates": len(templates)}
        save_json(draft.path / "templates.json", list(templates))

    artifact, built = bench.store.get_or_build(series.member(), build)
    templates = tuple(load_json(artifact.path / "templates.json"))
    return Outcome(Contexts(artifact.digest, templates), artifact.address, built, {"templates": len(templates)})


def read_contexts(path: Path) -> tuple[str, ...]:
    """Templates of a JSON list; the clean one is put first if it is not there.

    Raises:
        InputError: not a list of texts with one ``{}`` each.
    """
    value = read_json(path.expanduser())
    if not isinstance(value, list) or not value:
        raise InputError(f"{path} is not a JSON list of context templates.", expected='["{}", "Therefore. {}", ...]')
    for index, template in enumerate(value):
        if not isinstance(template, str) or template.count(PLACEHOLDER) != 1:
            raise InputError(
                f"Template {index} of {path} (counted from 0) has no place for the prompt.",
                got=repr(template),
                expected="a text with one {}",
            )
    return (CLEAN, *(template for template in value if template != CLEAN))
