"""Classification tasks: their prompts, their labels, and how their examples are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from factsmith.artifacts.errors import InputError, closest
from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.facts.reading import RawRecord
from factsmith.tasks.pipeline.parts import load_parts

__all__ = ["AbilityTask", "Example", "HubSplit", "label_index", "load_tasks", "verbatim"]


@dataclass(frozen=True)
class HubSplit:
    """A split of a dataset on the hub.

    Attributes:
        repository: ``owner/name``.
        subset: subset of the repository.
        split: split of the subset.
    """

    repository: str
    subset: str
    split: str

    def __str__(self) -> str:
        return f"{self.repository} ({self.subset}, {self.split})"


@dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
        prompt: the prompt.
        label: index of the correct label.
    """

    prompt: str
    label: int

    @property
    def digest(self) -> str:
        """Identifies the prompt. A model's answer does not depend on the correct label."""
        return digest_of({"prompt": self.prompt})


class AbilityTask(ABC):
    """A classification task that measures a general ability. It is asked zero-shot: a prompt holds no solved example.

    Attributes:
        name: name of the task, and of its file in ``abilities.path``.
        title: the usual spelling of the name.
        labels: the words that stand for the labels.
        any_case: whether a label in a generated text counts in capitals and small letters alike.
        most_generated: most tokens of a generated answer.
        hub: where the hub has the task's examples.
        unused: fields of a record that are not needed.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]
    any_case: ClassVar[bool] = True
    most_generated: ClassVar[int] = 3
    hub: ClassVar[HubSplit]
    unused: ClassVar[tuple[str, ...]] = ("idx",)

    @abstractmethod
    def parse(self, raw: RawRecord) -> Example:
        """The example of a record.

        Raises:
            InputError: the record cannot be used; names its place.
        """

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but the prompt that determines how a model answers."""
        return {"task": self.name, "labels": list(self.labels)}


def verbatim(raw: RawRecord, name: str) -> str:
    """The text of a field, with the blanks at its ends: the published prompts keep them.

    Raises:
        InputError: it is missing, blank or not a text.
    """
    raw.text(name)
    return str(raw.value(name))


def label_index(raw: RawRecord, name: str, known: Sequence[Any]) -> int:
    """The place in ``known`` of the value of a field.

    Raises:
        InputError: the value is not one of these.
    """
    value = raw.value(name)
    for place, one in enumerate(known):
        if type(value) is type(one) and value == one:
            return place
    raise raw.error(
        f"field {name!r} is not a label",
        got=ascii(value)[:80],
        expected=" or ".join(map(repr, known)),
        remedy="use examples whose labels are published, such as a validation split",
    )


@cache
def _tasks() -> dict[str, AbilityTask]:
    from factsmith.tasks.abilities import tasks

    return {module.TASK.name: module.TASK for module in load_parts(tasks.__name__)}


def load_tasks(names: Sequence[str]) -> list[AbilityTask]:
    """Load tasks by name, in the order given.

    Raises:
        InputError: there is no task with a given name.
    """
    known = _tasks()
    for name in names:
        if name not in known:
            raise InputError(f"There is no ability task {name!r}.", remedy=closest(name, known))
    return [known[name] for name in names]
