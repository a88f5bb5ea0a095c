"""What every kind of preservation defines: its factor, the operator that the factor makes, and its cost."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.tasks.preservation.operator import PreservationOperator
from factsmith.tasks.preservation.settings import PreservationSettings

__all__ = [
    "Cost",
    "Factor",
    "FactorisationError",
    "KeyMoments",
    "PreservationKind",
    "Source",
    "Statistics",
    "load_kind",
]

Source: TypeAlias = Literal["covariance", "keys", "nothing"]
"""What a factor is made from: the moments of keys, the keys themselves, or nothing but settings."""


@dataclass(frozen=True)
class KeyMoments:
    """Moments of a layer's keys.

    Attributes:
        covariance: C0, (d_k, d_k) float64.
        mean: (d_k,) float64; ``None`` if it is not known.
        count: number of keys.
    """

    covariance: Tensor
    mean: Tensor | None
    count: int


Statistics: TypeAlias = KeyMoments | Tensor | None
"""What a layer's factor is made from: moments, keys (n, d_k), or nothing."""


@dataclass(frozen=True)
class Factor:
    """A layer's factor.

    Attributes:
        tensors: what is stored, by name.
        summary: numbers that describe it.
    """

    tensors: Mapping[str, Tensor]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """The cost of one layer, from shapes.

    Attributes:
        flop: FLOP of the factorisation.
        bytes: bytes that are stored.
        memory: most bytes held at once during the factorisation.
        solve_flop: FLOP of applying the operator to one key.
    """

    flop: float
    bytes: int
    memory: int
    solve_flop: float


@dataclass(eq=False)  # hashable, as exceptions must be
class FactorisationError(Exception):
    """A layer has no factor.

    Attributes:
        problem: what is wrong, to follow "Layer N of MODEL: " or "MODEL: ".
        got: what was found.
        expected: what was expected.
        remedy: what to do.
        tokens_needed: token count that would help, if more tokens would.
    """

    problem: str
    got: str | None = None
    expected: str | None = None
    remedy: str | None = None
    tokens_needed: int | None = None

    def of(self, where: str, more: str | None = None) -> InputError:
        """The error to raise for the layer or model ``where``. ``more`` is how to get more tokens, if that helps."""
        remedies = [remedy for remedy in (more, self.remedy) if remedy]
        return InputError(
            f"{where}: {self.problem}.", got=self.got, expected=self.expected, remedy=", or ".join(remedies) or None
        )


class PreservationKind(ABC):
    """A kind of preservation. The module named by ``method.preservation`` provides it as ``kind(...)``.

    Args:
        settings: the method's settings of what to preserve.
        width: d_k.
        keep_keys: whether the run stores keys.

    Attributes:
        name: the kind, as recipes name it.
        version: version of the recipe of its factors.
        file: name of the file that holds the tensors.
        measured: numbers of the summary that are logged for every layer.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    file: ClassVar[str]
    measured: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: PreservationSettings, *, width: int, keep_keys: bool) -> None:
        self.settings = settings
        self.width = width
        self.keep_keys = keep_keys

    @property
    def source(self) -> Source:
        """What the factor is made from."""
        return "covariance"

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Any]:
        """The settings that change the factor, for its recipe."""

    def check(self, tokens: int) -> None:
        """Check what the sizes alone tell, before a key is read.

        Args:
            tokens: the most tokens that a factor can be made from.

        Raises:
            FactorisationError: no layer has a factor; says what would help.
        """
        del tokens

    @abstractmethod
    def factorise(self, statistics: Statistics, projection: Callable[[], Tensor], layer: int) -> Factor:
        """The factor of a layer.

        Args:
            statistics: what it is made from, as ``source`` says.
            projection: gives the layer's MLP output projection, (d_out, d_in).
            layer: the layer, for the log.

        Raises:
            FactorisationError: there is none; says what would help.
        """

    @property
    def scaling(self) -> Mapping[str, Any]:
        """The settings that change the operator but not the factor, for the recipe of an edit."""
        return {}

    @abstractmethod
    def operator(self, tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> PreservationOperator:
        """The operator that a layer's factor makes.

        Raises:
            FactorisationError: the operator would let nothing be written.
        """

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """The cost of a layer. A rank that is not known yet counts as the largest possible one."""


def load_kind(settings: PreservationSettings, *, width: int, keep_keys: bool) -> PreservationKind:
    """The kind of preservation that ``settings`` choose."""
    module = importlib.import_module(f"factsmith.tasks.preservation.{settings.preservation}")
    chosen: PreservationKind = module.kind(settings, width=width, keep_keys=keep_keys)
    return chosen
