"""Values that the type of a setting accepts but that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.keys import setting_types

__all__ = ["check_values"]


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
