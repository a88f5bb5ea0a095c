"""What every form of an export defines: whether it can hold an edit, which files it writes, and how they are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.edit import Edit
from factsmith.tasks.export import forms
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.parts import load_parts

__all__ = ["CHECKPOINT", "Form", "form_names", "load_form", "no_memory", "not_thin"]

CHECKPOINT = "checkpoint"
"""The form of an export that names none."""


class Form(ABC):
    """A form in which an edited model leaves Factsmith: a folder of files.

    Attributes:
        name: name of the form, which is that of its module.
        title: what it is, in one sentence.
        library: what loads the files, as the hub calls it.
        language: the language of ``usage``.
        tags: further tags of the files on the hub.
        is_thin: whether it holds thin factors only, and no change that is dense.
        holds_memory: whether it holds an edit with a memory.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    library: ClassVar[str]
    language: ClassVar[str] = "python"
    tags: ClassVar[tuple[str, ...]] = ()
    is_thin: ClassVar[bool] = True
    holds_memory: ClassVar[bool] = False

    def check(self, edit: Edit) -> None:
        """Check that the form can hold ``edit``. Nothing is written before.

        Raises:
            InputError: it cannot; says what would help.
        """
        if edit.adds_memory and not self.holds_memory:
            raise no_memory(self.name, f"an edit of the kind {edit.kind}")
        if self.is_thin:
            for place, delta in edit.changes.items():
                if not isinstance(delta, LowRankDelta):
                    raise not_thin(self.name, f"the change of {place}")

    @abstractmethod
    def write(self, folder: Path, model: Model, edit: Edit, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the files of the edited model, or of the edit, and check them.

        Args:
            folder: an empty folder, which nobody sees until it is complete. ``factsmith.json`` and ``README.md`` are
                written by the caller.
            model: the unedited model. Its weights are the same when this returns.
            edit: the edit.
            about: what ``factsmith.json`` says of the edit: its address, its facts, the model, the settings, the
                scores.

        Returns:
            What ``factsmith.json`` says besides, as values of JSON.

        Raises:
            InputError: the form cannot hold the edit.
        """

    @abstractmethod
    def usage(self, about: Mapping[str, Any]) -> str:
        """The Python code, or the command, that loads the files, for people. ``.`` is their folder.

        Args:
            about: what ``factsmith.json`` says.
        """

    def notes(self, about: Mapping[str, Any]) -> list[str]:
        """Paragraphs that say what else whoever loads the files should know, in Markdown."""
        return []


def no_memory(form: str, got: str) -> InputError:
    """The error that an edit has a memory, which the form cannot hold."""
    return InputError(
        f"The form {form} cannot hold a memory, which decides for every prompt whether it answers.",
        got=got,
        expected="changes of weights",
        remedy=f"use --to {CHECKPOINT}, which writes the memory beside the unedited weights",
    )


def not_thin(form: str, got: str) -> InputError:
    """The error that a change has no thin factors, which are all that the form can hold."""
    return InputError(
        f"The form {form} holds thin factors, and a change has none.",
        got=f"{got}, which is dense",
        expected="low-rank changes",
        remedy=f"use --to {CHECKPOINT}, or --rank R for the best approximation of rank R",
    )


def load_form(name: str) -> Form:
    """Load a form by name.

    Raises:
        InputError: there is no form of that name.
    """
    known = _forms()
    if name not in known:
        raise InputError(f"There is no form {name!r} to export.", remedy=closest(name, known))
    return known[name]


def form_names() -> list[str]:
    """The names of all forms."""
    return list(_forms())


@cache
def _forms() -> dict[str, Form]:
    return {module.FORM.name: module.FORM for module in load_parts(forms.__name__)}
