"""Correct facts inside a language model: a cached, logged pipeline for locate-then-edit knowledge editing.

The packages ``artifacts``, ``tasks``, ``flows``, ``api`` and ``conf`` stand at the top of the repository. This folder
links to them, so that Python, type checkers and editors find them under the name they are imported by.

``edit``, ``collect_statistics`` and the other names of ``__all__`` are the Python API. Each is loaded when it is first
used, because torch and transformers take seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factsmith.api.edit import ModelEdit, load_edit
    from factsmith.api.editing import edit
    from factsmith.api.embedded import embedded
    from factsmith.api.statistics import Statistics, collect_statistics, import_statistics, load_statistics
    from factsmith.artifacts.errors import InputError

__all__ = [
    "InputError",
    "ModelEdit",
    "Statistics",
    "collect_statistics",
    "edit",
    "embedded",
    "import_statistics",
    "load_edit",
    "load_statistics",
]

_HOME = {
    "InputError": "factsmith.artifacts.errors",
    "ModelEdit": "factsmith.api.edit",
    "Statistics": "factsmith.api.statistics",
    "collect_statistics": "factsmith.api.statistics",
    "edit": "factsmith.api.editing",
    "embedded": "factsmith.api.embedded",
    "import_statistics": "factsmith.api.statistics",
    "load_edit": "factsmith.api.edit",
    "load_statistics": "factsmith.api.statistics",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
