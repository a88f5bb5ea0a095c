"""The settings of a run that differ from those of its choices: what tells it from other runs."""

from __future__ import annotations

from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS
from factsmith.flows.configuration.composition import compose_parts
from factsmith.flows.configuration.keys import setting_values
from factsmith.tasks.planning.settings import Settings

__all__ = ["differences"]

_REQUIRED = {"model.path", "corpus.path", "dataset.path", "method.layers"}
"""Settings that some choices leave to the user."""

_ELSEWHERE = {"method.batch_size", "dataset.batches", "dataset.limit"}
"""Settings that the number of facts and batches tells."""

_OTHER = ("runtime.", "tracking.", "trace.")
"""Settings that do not change the edit."""


def differences(settings: Settings) -> dict[str, str]:
    """The settings that differ from those of the choices, by name. Empty if a choice is not one of ours."""
    content = settings.model_dump(mode="json")
    chosen = {group: str(content[group]["name"]) for group in GROUPS}
    required: dict[str, dict[str, Any]] = {}
    for name in _REQUIRED:
        group, _, key = name.partition(".")
        if content[group].get(key) is not None:
            required.setdefault(group, {})[key] = content[group][key]
    try:
        usual = dict(setting_values(compose_parts(chosen, required).model_dump(mode="json")))
    except InputError:
        return {}
    return {
        name: _text(value)
        for name, value in setting_values(content)
        if value != usual.get(name) and name not in _REQUIRED | _ELSEWHERE and not name.startswith(_OTHER)
    }


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
