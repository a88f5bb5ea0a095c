"""The words for settings: every key there is, what it means and what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.planning.settings import Settings

__all__ = ["check_key", "describe_settings", "setting_types"]


def describe_settings() -> Iterator[tuple[str, str]]:
    """Every key with its meaning."""
    for name, field in _fields():
        yield name, field.description or ""


def _fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def check_key(name: str, groups: Iterable[str]) -> None:
    """
    Args:
        name: of a setting, perhaps.
        groups: of choices, which a misspelt name may have been meant for.

    Raises:
        InputError: there is no such setting; says which may be meant.
    """
    known = {key for key, _ in describe_settings()}
    if name not in known:
        parent, _, last = name.rpartition(".")
        namesakes = sorted(key for key in known if key.rpartition(".")[2] == last)
        siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
        if namesakes:
            remedy = f"did you mean {namesakes[0]!r}?"
        elif siblings:
            remedy = closest(last, siblings)
        else:
            remedy = closest(name, {*known, *groups})
        raise InputError(f"There is no setting {name!r}.", remedy=remedy)


def setting_types() -> dict[str, Any]:
    """The type of every key."""
    return {name: field.annotation for name, field in _fields()}
