"""Refiners: what is done to a finished change before it is written. One file each, which ``method.refiner`` names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from factsmith.tasks.edit.delta import Delta
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.pipeline.parts import load_part
from factsmith.tasks.pipeline.settings import Section

__all__ = ["Refiner", "load_refiner", "sum_refiner"]

S = TypeVar("S", bound=Section)


class Refiner(ABC, Generic[S]):
    """What is done to a finished change, whichever base method it comes from.

    Args:
        settings: the refiner's section of ``method``.

    Attributes:
        name: name of the refiner, which is that of its module.
        version: must be raised when the same change would be refined to another one.
        of_batches: whether the change of each batch is refined, so that later batches of a sequence build on what it is
            refined to. If not, the sum of all changes is, each time that it is published, and batches build on the sum
            as it was.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    of_batches: ClassVar[bool]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @abstractmethod
    def refine(self, layer: int, delta: Delta, weight: Tensor) -> Delta:
        """The refined change. The same arguments give the same bits.

        Args:
            layer: the layer.
            delta: the finished change, float64.
            weight: (d_out, d_in) weight that it is added to.
        """

    @property
    def is_dense(self) -> bool:
        """Whether what it gives has no thin factors. For plans."""
        return False

    @property
    def recipe(self) -> dict[str, Any]:
        """What determines how changes are refined."""
        return {"name": self.name, "version": self.version, **self.settings.model_dump(mode="json")}


def load_refiner(method: MethodSettings) -> Refiner[Any] | None:
    """The refiner that ``method.refiner`` names, with its settings; ``None`` if it names none.

    Raises:
        InputError: there is no refiner of that name.
    """
    name = method.refiner
    if name is None:
        return None
    chosen: type[Refiner[Any]] = load_part(__name__, name, "refiner").REFINER
    return chosen(getattr(method, name, Section()))


def sum_refiner(method: MethodSettings) -> Refiner[Any] | None:
    """The refiner of the changes that a sequence sums up. A wrapper refines what it is given itself."""
    refiner = load_refiner(method)
    return None if refiner is not None and refiner.of_batches and method.wrapper is not None else refiner
