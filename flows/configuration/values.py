"""Values of settings: those that cannot be used, and settings made of the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.configuration.keys import describe_settings, setting_types
from factsmith.tasks.planning.settings import Settings

__all__ = ["check_values", "not_given", "validated"]


def check_values(content: Any, name: str = "") -> None:
    """Check the values in nested settings, or the value of the setting ``name``.

    Raises:
        InputError: one of them cannot be used.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            check_values(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list):
        for value in content:
            check_values(value, name)
    elif isinstance(content, bool) and setting_types().get(name) not in (bool, bool | None):
        raise InputError(f"{name} cannot be used.", got=repr(content), expected="a value that is not true or false")
    elif isinstance(content, int) and not -(2**63) <= content < 2**63:
        raise InputError(f"{name} cannot be used.", got=repr(content), expected="an integer of at most 64 bits")
    elif isinstance(content, str) and ("\0" in content or not _is_unicode(content)):
        raise InputError(f"{name} cannot be used.", got=ascii(content), expected="Unicode text without NUL")
    elif isinstance(content, str) and content.startswith("~") and os.path.expanduser(content) == content:
        raise InputError(f"{name} cannot be used.", got=repr(content), expected="the home folder of an existing user")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_given(name: str) -> InputError:
    """The error of a setting that has no value."""
    return InputError(f"{name} must be given.", remedy=f"add {name}=...")


_ABOUT_A_FIELD = ("missing", "extra_forbidden")
"""Types of errors inside a setting's value. Their messages only make sense with the name of the field."""


def validated(content: Any) -> Settings:
    """The settings with the nested values ``content``.

    Raises:
        InputError: a value that has another type, is out of range or is missing, or an unknown setting.
    """
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # For a union, the location ends with the type that was tried. The setting's name is the part before it.
        where = ".".join(str(part) for part in first["loc"])
        known = [key for key, _ in describe_settings() if where == key or where.startswith(f"{key}.")]
        name = known[0] if known else where
        if known and name == where and first["type"] == "missing":
            raise not_given(name) from None
        remedy = closest(name, [key for key, _ in describe_settings()]) if not known else None
        expected = f"{first['loc'][-1]}: {first['msg']}" if first["type"] in _ABOUT_A_FIELD else first["msg"]
        raise InputError(
            f"{name} cannot be used." if known else f"There is no setting {name!r}.",
            got=repr(first["input"]) if not isinstance(first["input"], Mapping) else None,
            expected=expected if known else None,
            remedy=remedy,
        ) from None
