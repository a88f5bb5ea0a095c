"""Parts that are found by the names of their modules: a new one is a new file in a package."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from factsmith.artifacts.errors import InputError, closest

__all__ = ["load_part", "load_parts"]


def load_part(package: str, name: str, what: str) -> ModuleType:
    """Import the module ``name`` of ``package``.

    Raises:
        InputError: there is no such module. ``what`` says what the modules of the package are.
    """
    known = _names(package)
    if name not in known:
        raise InputError(f"There is no {what} {name!r}.", remedy=closest(name, known))
    return importlib.import_module(f"{package}.{name}")


def load_parts(package: str) -> list[ModuleType]:
    """Import all modules of ``package``, in the order of their names."""
    return [importlib.import_module(f"{package}.{name}") for name in _names(package)]


def _names(package: str) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
