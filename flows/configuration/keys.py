"""The names of all settings, their meanings and their types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from factsmith.artifacts.errors import InputError, closest, similar
from factsmith.tasks.planning.settings import RENAMED, Settings

__all__ = [
    "check_key",
    "check_renamed",
    "describe_settings",
    "sections",
    "setting_defaults",
    "setting_types",
    "setting_values",
    "with_new_names",
]


def describe_settings() -> Iterator[tuple[str, str]]:
    """Every setting's name with its meaning."""
    for name, field in _fields():
        yield name, field.description or ""


@cache
def _fields(model: type[BaseModel] = Settings, prefix: str = "") -> tuple[tuple[str, FieldInfo], ...]:
    found: list[tuple[str, FieldInfo]] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _fields(inner, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field))
    return tuple(found)


def check_key(name: str, groups: Iterable[str]) -> None:
    """Check that ``name`` is a setting.

    Args:
        name: the name to check.
        groups: groups of choices, which a misspelt name may stand for.

    Raises:
        InputError: there is no such setting; the message suggests the one that may be meant.
    """
    check_renamed([name])
    known = setting_types()
    if name not in known:
        parent, _, last = name.rpartition(".")
        same_last = sorted(key for key in known if key.rpartition(".")[2] == last)
        siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
        if same_last:
            remedy = f"did you mean {same_last[0]!r}?"
        elif siblings:
            remedy = closest(last, siblings)
        else:
            meant = similar(name, {*known, *groups})
            remedy = f"did you mean {meant!r}?" if meant else "`factsmith conf` lists all settings"
        raise InputError(f"There is no setting {name!r}.", remedy=remedy)


def check_renamed(names: Iterable[str]) -> None:
    """Check that none of ``names`` is a name that a setting had in an earlier version.

    Raises:
        InputError: one of them is; the message gives the new name.
    """
    for name in names:
        if name in RENAMED:
            raise InputError(f"The setting {name!r} has a new name.", remedy=f"use {RENAMED[name]!r}")


def with_new_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """The nested settings of an earlier run, with the names that settings have now."""
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}
    for old, new in RENAMED.items():
        (group, old_name), (_, new_name) = old.split("."), new.split(".")
        if isinstance(found.get(group), dict) and old_name in found[group]:
            found[group][new_name] = found[group].pop(old_name)
    return found


@cache
def setting_types() -> Mapping[str, Any]:
    """The type of every setting."""
    return {name: field.annotation for name, field in _fields()}


@cache
def sections() -> frozenset[str]:
    """The names of all groups of settings, such as ``method.value``."""
    parts = (name.split(".") for name, _ in _fields())
    return frozenset(".".join(part[:depth]) for part in parts for depth in range(1, len(part)))


def setting_defaults() -> dict[str, Any]:
    """The default of every setting that has one."""
    return {name: field.get_default(call_default_factory=True) for name, field in _fields() if not field.is_required()}


def setting_values(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting in nested settings, by its full name, with its value."""
    types = setting_types()
    for name, value in content.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in types:
            yield from setting_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
