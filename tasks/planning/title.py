"""What a run is called in Prefect and MLflow, and what its page says that it does."""

from __future__ import annotations

from collections.abc import Mapping

from factsmith.tasks.planning.run import Run

__all__ = ["description", "summary", "title"]

_MOST_DIFFERENCES = 2
_SHORT = {"corpus.dynamic_multiplier": "d_m"}
"""Names of settings that have a symbol."""


def title(
    run: Run, flow: str, differences: Mapping[str, str] | None = None, *, dataset: bool = True, editing: bool = True
) -> str:
    """For example ``memit · embedded · 16 facts · d_m=20``.

    Args:
        run: the run.
        flow: its flow, which is named unless it is ``run``.
        differences: settings that differ from those of the choices; the first few tell runs apart.
        dataset: whether it reads facts.
        editing: whether it prepares or makes an edit.
    """
    parts = [] if flow == "run" else [flow]
    parts += [_method(run)] if editing else []
    parts += [run.settings.model.name]
    parts += [_facts(run)] if dataset and editing else []
    given = [f"{_SHORT.get(name) or name.partition('.')[2]}={value}" for name, value in (differences or {}).items()]
    parts += given[:_MOST_DIFFERENCES]
    if len(given) > _MOST_DIFFERENCES:
        parts += [f"{len(given) - _MOST_DIFFERENCES} more"]
    return " · ".join(parts)


def summary(run: Run, *, dataset: bool = True) -> str:
    """For example ``16 facts written into embedded by memit``.

    Args:
        run: the run.
        dataset: whether it reads facts.
    """
    model, method = run.settings.model.name, _method(run)
    return f"{_facts(run)} written into {model} by {method}" if dataset else f"{model} prepared for {method}"


def description(
    run: Run, flow: str, differences: Mapping[str, str] | None = None, *, dataset: bool = True, editing: bool = True
) -> str:
    """What the run does, as a sentence in Markdown, and the settings that differ from those of the choices."""
    settings = run.settings
    model = f"model **{settings.model.name}** (`{settings.model.path}`)"
    layers = f"{'layer' if len(run.layers) == 1 else 'layers'} {', '.join(map(str, run.layers))}" if editing else ""
    if not editing:
        text = f"`{flow}`: looks for the layers that carry the facts of {model}."
    elif not dataset:
        text = f"`{flow}`: prepares {model}, {layers}, for method **{_method(run)}**."
    else:
        facts = f"{_facts(run)} of dataset **{settings.dataset.name}**"
        text = f"`{flow}`: {facts} in {model}, {layers}, by **{_method(run)}**."
    given = ", ".join(f"`{name}={value}`" for name, value in (differences or {}).items())
    return f"{text}\n\nSettings that differ from the choices: {given}." if given else text


def _method(run: Run) -> str:
    return f"{run.settings.method.name}{' in sequence' if run.settings.method.in_sequence else ''}"


def _facts(run: Run) -> str:
    """``16 facts``, and how they are divided if it is into more than one batch."""
    batches = run.batches.batches
    count = sum(map(len, batches))
    facts = f"{count:,} fact{'' if count == 1 else 's'}"
    return facts if len(batches) == 1 else f"{facts} in batches of {max(map(len, batches)):,}"
