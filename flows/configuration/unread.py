"""Settings that a user gives and that the run would not read. They are refused, because ignoring them misleads.

When a setting is read is declared where the setting is (``pipeline.settings.ReadIf``). Nothing here lists settings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import GROUPS, choice_names, load_choice
from factsmith.flows.configuration.keys import setting_defaults, setting_types, setting_values
from factsmith.tasks.pipeline.settings import ReadIf
from factsmith.tasks.planning.settings import Settings

__all__ = ["UNUSED_BY_EDITS", "given_settings", "is_read", "read_when", "refuse_unread", "unread"]

UNUSED_BY_EDITS = frozenset({"trace"})
"""Sections of the settings that a run that prepares, makes or scores an edit does not read."""

_STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "method": {"layers": [0], "preservation_weight": 1},
    "corpus": {"path": "file"},
}
"""Values for settings that a choice leaves to the user or to the model, to see what it would read with them."""


def given_settings(given: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """The names of the settings in ``given``, both nested, that differ from what they would be without it."""
    without = dict(setting_values(base))
    defaults = setting_defaults()
    return [
        name
        for name, value in setting_values(given)
        if name in setting_types() and value != without.get(name, defaults.get(name))
    ]


def refuse_unread(names: Iterable[str], settings: Settings, unused: Collection[str] = UNUSED_BY_EDITS) -> None:
    """Refuse settings that a run does not read.

    Args:
        names: names of the settings and choices that the user gave.
        settings: the settings of the run.
        unused: sections that the command does not read.

    Raises:
        InputError: the run does not read one of them. The message says with what it would be read.
    """
    for name in names:
        if (error := unread(name, settings, unused)) is not None:
            raise error


def is_read(name: str, settings: Settings) -> bool:
    """Whether a run with ``settings`` reads the setting ``name``."""
    return name.partition(".")[0] not in UNUSED_BY_EDITS and all(one.holds(settings) for one in _declared(name))


def read_when(name: str) -> list[str]:
    """What must hold for a run to read the setting ``name``, in words; empty if every run reads it."""
    return list(
        dict.fromkeys(" or ".join(_needs(one) for one in declared.alternatives) for declared in _declared(name))
    )


def unread(name: str, settings: Settings, unused: Collection[str] = UNUSED_BY_EDITS) -> InputError | None:
    """Why a run with ``settings`` does not read the setting ``name``; ``None`` if it does.

    The arguments are those of ``refuse_unread``.
    """
    if (section := name.partition(".")[0]) in unused:
        return InputError(
            f"{name} would have no effect.",
            got=f"a command that does not read {section}",
            expected=f"`factsmith {'locate' if section == 'trace' else 'run'}`",
            remedy="leave it out",
        )
    for declared in _declared(name):
        if not declared.holds(settings):
            return InputError(
                f"{name} would have no effect.",
                got=_what_is(declared, settings),
                expected=" or ".join(_needs(one) for one in declared.alternatives),
                remedy=_remedy(declared, settings),
            )
    return None


def _declared(name: str) -> Iterator[ReadIf]:
    """The declarations of a setting: those of the sections that it is in, then its own."""
    section: Any = Settings
    for part in name.split("."):
        field = section.model_fields[part]
        yield from (one for one in field.metadata if isinstance(one, ReadIf))
        section = field.annotation


def _what_is(declared: ReadIf, settings: Settings) -> str:
    """The setting that decides, or the choice if the user does not set what decides."""
    if declared.needs is None:
        return f"{declared.name}={_shown(declared.value_in(settings))}"
    if declared.name.startswith("method."):
        if settings.method.editor is not None:
            return f"method={settings.method.name}, method.editor={settings.method.editor}"
        return f"method={settings.method.name}, method.preservation={settings.method.preservation}"
    return f"corpus.dynamic_multiplier={settings.corpus.dynamic_multiplier} and method={settings.method.name}"


def _needs(declared: ReadIf) -> str:
    if declared.needs is not None:
        return declared.needs
    if declared.values:
        return f"{declared.name}={' or '.join(map(_shown, declared.values))}"
    return f"{declared.name} other than {' or '.join(map(_shown, declared.but))}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _remedy(declared: ReadIf, settings: Settings) -> str:
    """The choices with which the setting would be read, or the value to set."""
    group = declared.name.partition(".")[0]
    if group in GROUPS and (
        reading := [name for name in choice_names(group) if _reads(declared, group, name, settings)]
    ):
        if getattr(settings, group).name in reading:
            return f"leave it out, or leave out what changes {group}={getattr(settings, group).name}"
        return f"leave it out, or choose {' or '.join(f'{group}={name}' for name in reading)}"
    if declared.needs is None and declared.values:
        return f"leave it out, or set {declared.name}={_shown(declared.values[0])}"
    return "leave it out"


def _reads(declared: ReadIf, group: str, name: str, settings: Settings) -> bool:
    """Whether a run with the choice ``name`` would read the declared setting."""
    content = OmegaConf.to_container(load_choice(group, name)[1])
    assert isinstance(content, dict)
    given: dict[Any, Any] = {key: value for key, value in content.items() if value != "???"}
    section = Settings.model_fields[group].annotation
    assert section is not None
    if declared.needs is None and declared.name not in dict(setting_values(given, f"{group}.")):
        return False  # The choice leaves it to the user.
    try:
        chosen = section.model_validate({**_STAND_INS.get(group, {}), **given})
    except (ValidationError, InputError):
        return False
    return declared.holds(settings.model_copy(update={group: chosen}))
