"""Where the settings of a run come from, and the arguments that give the same settings again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic_core import to_jsonable_python

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS, choice_names, load_choice
from factsmith.flows.configuration.composition import compose, parse
from factsmith.flows.configuration.keys import setting_defaults, setting_values
from factsmith.flows.configuration.unread import is_read
from factsmith.tasks.planning.settings import Settings

__all__ = ["DEFAULT", "GIVEN", "arguments_again", "arguments_of", "origins"]

GIVEN = "given"
"""The origin of a setting that differs from its choice and its default."""

DEFAULT = "default"

_STAND_INS = {"model": "local", "corpus": "local", "method": "memit", "dataset": "facts"}
"""The choices to start from where a run's choice is a file of the user's, which settings do not name."""


def origins(settings: Settings) -> dict[str, str]:
    """The origin of every setting that a run reads: ``given``, a choice such as ``model=embedded``, or ``default``.

    A choice of the user's that is a file counts as given.
    """
    defaults = to_jsonable_python(setting_defaults())
    chosen = {name: (value, choice) for choice, found in _of_choices(_chosen(settings)) for name, value in found}
    by_name = {}
    for name, value in setting_values(settings.model_dump(mode="json")):
        usual, choice = chosen.get(name, (defaults.get(name), DEFAULT))
        if is_read(name, settings):
            by_name[name] = choice if value == usual else GIVEN
    return by_name


def arguments_of(settings: Settings) -> list[str] | None:
    """Arguments that give ``settings``: choices, and settings that differ from them.

    ``None`` if arguments cannot give them.
    """
    chosen = _chosen(settings)
    _, model = load_choice("model", chosen["model"])
    usual = dict(model.get("defaults") or {})
    choices = [f"{group}={name}" for group, name in chosen.items() if usual.get(group) != name]
    values = dict(setting_values(settings.model_dump(mode="json")))
    given = [name for name, origin in origins(settings).items() if origin == GIVEN]
    arguments = [*choices, *(_argument(name, values[name]) for name in given)]
    try:
        return arguments if compose(arguments) == settings else None
    except InputError:
        return None


def arguments_again(content: Mapping[str, Any], settings: Settings) -> list[str]:
    """Arguments of `evaluate RUN`: the settings that differ from those of the earlier run, nested in ``content``."""
    before = dict(setting_values(content))
    now = setting_values(settings.model_dump(mode="json"))
    return [_argument(name, value) for name, value in now if name in before and before[name] != value]


def _chosen(settings: Settings) -> dict[str, str]:
    """The choice of each group, or one to start from."""
    names = {group: getattr(settings, group).name for group in GROUPS}
    return {group: name if name in choice_names(group) else _STAND_INS[group] for group, name in names.items()}


def _of_choices(chosen: dict[str, str]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """What each choice sets, by full name. Later ones win, as in ``compose``."""
    for group in ("corpus", "method", "dataset"):
        yield f"{group}={chosen[group]}", _values(load_choice(group, chosen[group])[1], group)
    _, model = load_choice("model", chosen["model"])
    parts = {name: model.pop(name, None) or OmegaConf.create() for name in ("defaults", "editing", "methods")}
    own = f"model={chosen['model']}"
    yield own, _values(model, "model")
    yield own, _values(parts["editing"], "method")
    yield own, _values(parts["methods"].get(chosen["method"]) or OmegaConf.create(), "method")


def _values(part: DictConfig, group: str) -> list[tuple[str, Any]]:
    content = OmegaConf.to_container(part)
    assert isinstance(content, dict)
    return list(setting_values({str(name): value for name, value in content.items()}, f"{group}."))


def _argument(name: str, value: Any) -> str:
    """The setting as an argument: text as it is, unless YAML would read something else."""
    with suppress(InputError):
        if isinstance(value, str) and dict(setting_values(parse([f"{name}={value}"])[1])) == {name: value}:
            return f"{name}={value}"
    return f"{name}={json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
