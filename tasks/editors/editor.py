"""What every editor defines: how it writes facts, and which settings it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol, TypeVar

from transformers import PretrainedConfig

from factsmith.artifacts.errors import InputError, closest
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import Layout
from factsmith.tasks.edit.edit import Edit, WeightEdit
from factsmith.tasks.editors import methods
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.facts.contexts import Context
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.cost import ModelCost
from factsmith.tasks.pipeline.parts import load_parts

__all__ = ["Described", "Editor", "Fit", "NotWrittenError", "Task", "Written", "edit_kind", "load_editor"]

T = TypeVar("T")


class Described(Protocol):
    """What tells which modules a model has, without its weights."""

    @property
    def config(self) -> PretrainedConfig:
        """The config of transformers."""

    @property
    def layout(self) -> Layout:
        """The layout of its family."""


@dataclass(frozen=True)
class Task:
    """What an editor is to write, and how.

    Attributes:
        requests: B facts.
        contexts: contexts, the clean one first; only that one if the editor uses no others.
        layers: the layers to edit, ascending.
        method: the settings.
        most_tokens: most positions in one forward pass.
        counterfactual: the model that ``Editor.counterfactual`` names, untrained.
    """

    requests: Sequence[EditRequest]
    contexts: Sequence[Context]
    layers: Sequence[int]
    method: WritingSettings
    most_tokens: int
    counterfactual: Decoder | None = None


@dataclass(frozen=True)
class Fit:
    """How well a fact was written.

    Attributes:
        steps: number of steps of the optimiser that it took part in.
        loss: its last loss, or that of its batch.
    """

    steps: int
    loss: float


@dataclass(frozen=True)
class Written:
    """What an editor leaves.

    Attributes:
        edit: the edit, with everything that was written before it.
        fits: how well each fact was written.
    """

    edit: Edit
    fits: Sequence[Fit]


class NotWrittenError(Exception):
    """The loss of a fact is NaN or infinite.

    Attributes:
        request: the fact.
    """

    def __init__(self, request: EditRequest) -> None:
        super().__init__(f"the loss of case {request.case_id} is NaN or infinite")
        self.request = request


class Editor(ABC):
    """A method that writes facts in a way of its own.

    Attributes:
        name: name of the editor, which is that of its module.
        version: must be raised when the same settings and facts would give another edit.
        sections: the groups of ``method.*`` that it reads, such as ``training``. All of them are part of its recipe.
        edit: the kind of its edits.
        rate: the setting that bounds how much a batch changes.
        is_dense: whether its changes have no thin factors.
        uses_contexts: whether it writes facts in all contexts. If not, it uses the clean prompt alone.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    sections: ClassVar[tuple[str, ...]] = ()
    edit: ClassVar[type[Edit]] = WeightEdit
    rate: ClassVar[str] = "method.training.learning_rate"
    is_dense: ClassVar[bool] = False
    uses_contexts: ClassVar[bool] = False

    @abstractmethod
    def write(self, decoder: Decoder, before: Edit | None, task: Task) -> Written:
        """Write facts on top of what earlier batches of a sequence wrote.

        Args:
            decoder: the unedited model. Its weights are the same when this returns.
            before: what the earlier batches left; ``None`` before the first one.
            task: the facts and the settings. The same task gives the same edit.

        Raises:
            NotWrittenError: the loss of a fact is NaN or infinite.
        """

    def check(self, method: WritingSettings, layers: Sequence[int], facts: int) -> None:
        """Check that the editor can write batches of ``facts`` facts at these layers.

        Raises:
            InputError: it cannot; says what would help.
        """

    def check_model(self, method: WritingSettings, layers: Sequence[int], model: Described) -> None:
        """Check that the model has what the editor changes at these layers. The model is not loaded.

        Raises:
            InputError: it does not; says what it has.
        """

    def counterfactual(self, method: WritingSettings) -> str | None:
        """Another model that answers for the facts, as ``model.path`` names one; ``None`` if there is none.

        It has the vocabulary of the edited model, and is trained on the facts.
        """
        return None

    def steps(self, method: WritingSettings) -> int:
        """The most passes through the whole model, forward and backward, that a fact takes. For plans."""
        return method.training.steps

    def entries(self, method: WritingSettings, layers: Sequence[int], cost: ModelCost, tokens: int) -> int:
        """The most numbers in an edit whose batches have at most ``tokens`` tokens of new objects. For plans.

        Those of another model, which ``counterfactual`` names, are not among them.
        """
        return len(layers) * cost.projection

    def recipe(self, method: WritingSettings) -> dict[str, Any]:
        """The settings that determine its edits."""
        read = {name: getattr(method, name).model_dump(mode="json") for name in self.sections}
        return {"editor": self.name, "version": self.version, **read}


def load_editor(name: str) -> Editor:
    """Load an editor by name.

    Raises:
        InputError: there is no editor of that name.
    """
    return _named(name, _editors())


def edit_kind(name: str) -> type[Edit]:
    """The class of the edits of this kind.

    Raises:
        InputError: no editor has edits of this kind.
    """
    return _named(name, {editor.edit.kind: editor.edit for editor in _editors().values()})


def _named(name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise InputError(f"There is no editor {name!r}.", remedy=closest(name, known))
    return known[name]


@cache
def _editors() -> dict[str, Editor]:
    return {module.EDITOR.name: module.EDITOR for module in load_parts(methods.__name__)}
