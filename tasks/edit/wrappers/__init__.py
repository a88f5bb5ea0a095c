"""Wrappers: how a sequence is written with a base method that knows no sequence.

The base method edits the unedited weights for every batch. A wrapper turns each of these edits into a step from the
weights that the earlier batches left. One file each, which ``method.wrapper`` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.refiners import Refiner, load_refiner
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.pipeline.parts import load_part
from factsmith.tasks.pipeline.settings import Section

__all__ = ["Wrapper", "load_wrapper"]

S = TypeVar("S", bound=Section)


class Wrapper(ABC, Generic[S]):
    """How the edits of a base method become the steps of a sequence.

    Args:
        settings: the wrapper's section of ``method``.
        refiner: refines each edit of the base method first, if it is a refiner of batches.

    Attributes:
        name: name of the wrapper, which is that of its module.
        version: must be raised when the same edits would give other steps.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    def __init__(self, settings: S, refiner: Refiner[Any] | None) -> None:
        self.settings = settings
        self.refiner = refiner if refiner is not None and refiner.of_batches else None

    @abstractmethod
    def keys(
        self, decoder: Decoder, requests: Sequence[EditRequest], layers: Sequence[int], *, most_tokens: int
    ) -> dict[int, Tensor]:
        """What is remembered of a batch, read from the unedited model: keys (d_in, n) float64 of each layer."""

    @abstractmethod
    def step(self, layer: int, delta: LowRankDelta, keys: Tensor, original: Tensor, total: Tensor) -> LowRankDelta:
        """The change of a layer on top of ``total``, with which ``keys`` are remembered.

        Args:
            layer: the layer.
            delta: change of the unedited weight, which the base method writes the batch with.
            keys: (d_in, n) what ``keys`` gave for the layer.
            original: (d_out, d_in) unedited weight.
            total: (d_out, d_in) float64 sum of the earlier steps; empty before the first one.
        """

    @abstractmethod
    def remember(self, layer: int, keys: Tensor) -> None:
        """Remember the keys of a stored step, as ``step`` did, to the same bits."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What determines the steps."""
        return {"name": self.name, "version": self.version, **self.settings.model_dump(mode="json")}


def load_wrapper(method: MethodSettings) -> Wrapper[Any] | None:
    """The wrapper that ``method.wrapper`` names, with its settings and nothing remembered; ``None`` if it names none.

    Raises:
        InputError: there is no wrapper of that name.
    """
    name = method.wrapper
    if name is None:
        return None
    chosen: type[Wrapper[Any]] = load_part(__name__, name, "wrapper").WRAPPER
    return chosen(getattr(method, name, Section()), load_refiner(method))
