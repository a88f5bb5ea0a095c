"""The settings of a method for a model in memory: those of a run with the same choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import choice_names, load_choice
from factsmith.flows.configuration.composition import compose_parts
from factsmith.flows.configuration.keys import check_key
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.model.embedded import ASSETS
from factsmith.tasks.model.settings import EMBEDDED

__all__ = ["choice_for", "method_settings"]

_UNREAD = {
    "method.layers": "give layers=[...]",
    "method.low_rank.n_samples": "the statistics say how many tokens there are: collect_statistics(..., tokens=...)",
    "method.batch_size": "all facts of a call are one batch; call edit() once for each batch",
}


def choice_for(name: str) -> str | None:
    """The choice in ``conf/model`` for the model that transformers knows as ``name``; ``None`` if there is none."""
    if name == str(ASSETS):
        return EMBEDDED
    paths = {str(load_choice("model", one)[1].get("path", "")): one for one in choice_names("model") if one != "local"}
    return paths.get(name) if name else None


def method_settings(
    model: Any, method: str, *, layers: Sequence[int] | None, choice: str | None, settings: Mapping[str, Any] | None
) -> WritingSettings:
    """How facts are written into ``model``.

    Args:
        model: a transformers model.
        method: a name in ``conf/method``, or a YAML file.
        layers: the layers to edit; ``None`` for those of the choice.
        choice: a name in ``conf/model``, or a YAML file; ``None`` for the one whose path is the model's name.
        settings: values of settings by their full names, such as ``method.value.steps``.

    Raises:
        InputError: an unknown choice or setting, a value that cannot be used, or layers that must be given.
    """
    name = choice or choice_for(str(model.config.name_or_path))
    given: dict[str, Any] = {"model": {"path": "in memory"}, "method": {}}
    if not isinstance(method, str | PathLike):
        raise InputError("The method cannot be used.", got=repr(method)[:200], expected="a name or a YAML file")
    if not isinstance(settings, Mapping | None):
        expected = 'a dict such as {"method.value.steps": 20}'
        raise InputError("The settings cannot be used.", got=repr(settings)[:200], expected=expected)
    if layers is not None:
        given["method"]["layers"] = list(layers) if isinstance(layers, Iterable) else layers
    for key, value in (settings or {}).items():
        if not isinstance(key, str) or not key.startswith("method.") or key.startswith("method.sequence"):
            raise InputError(
                f"{key} would have no effect.",
                expected="settings of method.*, but for those of sequences",
                remedy="leave it out; `factsmith run` reads all settings",
            )
        if key in _UNREAD:
            raise InputError(f"{key} would have no effect.", remedy=_UNREAD[key])
        check_key(key, ())
        *path, last = key.split(".")
        part = given
        for step in path:
            part = part.setdefault(step, {})
        part[last] = value
    chosen = {"model": name or "local", "method": method, "corpus": "embedded", "dataset": "embedded"}
    if layers is None and name is None:
        raise InputError(
            f"Nobody has published layers for this model ({model.config.name_or_path or model.config.model_type}).",
            expected=f"layers=[...], or choice=NAME, one of {', '.join(choice_names('model'))}",
            remedy="`factsmith locate` finds layers that carry a model's facts",
        )
    return compose_parts(chosen, given).method
