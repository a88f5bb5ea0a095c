"""What a kind of preservation is: what it is made from, what is kept of it, and the operator it becomes."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.covariance.stage import Covariances
from factsmith.tasks.keys.stage import KeyStream
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.operator import PreservationOperator

__all__ = ["Cost", "Factorisation", "Source", "Statistics", "factorisation"]

Source: TypeAlias = Literal["covariance", "keys", "nothing"]
"""What factors are made from: the moments of keys, the keys themselves, or the settings alone."""

Statistics: TypeAlias = Covariances | KeyStream | None
"""The same, as the stages before leave it."""


@dataclass(frozen=True)
class Cost:
    """What one layer takes, from shapes.

    Attributes:
        flop: of factorising.
        bytes: that are kept.
        memory: bytes held at once while factorising.
        solve_flop: of applying the operator to one key.
    """

    flop: float
    bytes: int
    memory: int
    solve_flop: float


class Factorisation(ABC):
    """A kind of preservation. The module that ``method.preservation`` names gives it by ``choose(method)``.

    Attributes:
        measured: numbers of an artifact's summary that are logged of every layer.
    """

    measured: ClassVar[tuple[str, ...]] = ()

    def source(self, bench: Bench) -> Source:
        """What the factors are made from."""
        return "covariance"

    @abstractmethod
    def series(self, bench: Bench, source: str | None) -> Series:
        """The factors of all layers; ``source`` is the digest of what they are made from, if that is anything."""

    @abstractmethod
    def build(self, bench: Bench, draft: Draft, layer: int, statistics: Statistics) -> None:
        """Write the factors of ``layer``, their summary and what they were read from into ``draft``.

        Raises:
            InputError: they cannot be had; says what would help.
        """

    def scaling(self, bench: Bench) -> Mapping[str, Any]:
        """Settings that the operator minds and the factors do not: of the recipe of an edit."""
        return {}

    @abstractmethod
    def operator(self, bench: Bench, artifact: Artifact) -> PreservationOperator:
        """The operator that a layer's factors make."""

    def primary_directions(self, bench: Bench, artifact: Artifact) -> Tensor | None:
        """P_r, (d_in, r) float64 orthonormal: what the factors call the directions that must stay, if they do."""
        return None

    @abstractmethod
    def cost(self, bench: Bench, width: int) -> Cost:
        """What a layer with keys of ``width`` takes; a rank that is not known yet counts as the largest it can be."""


def factorisation(bench: Bench) -> Factorisation:
    """That of the run's method, as the module of its ``preservation`` chooses it."""
    method = bench.settings.method
    module = importlib.import_module(f"factsmith.tasks.preservation.factoring.{method.preservation}")
    chosen: Factorisation = module.choose(method)
    return chosen
