"""Settings of a method: the parts of the equation that all methods solve, and their constants."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.settings import ContextSettings
from factsmith.tasks.pipeline.settings import ReadIf, Section
from factsmith.tasks.preservation.settings import SOLVES, PreservationSettings
from factsmith.tasks.values.settings import ValueSettings

__all__ = [
    "MethodSettings",
    "PruneSettings",
    "ReadKeys",
    "RectSettings",
    "SequenceSettings",
    "SimieSettings",
    "Spread",
]

Spread = Literal["even", "square_root"]
"""The divisor of the residual at each layer: the number of layers still to be written (MEMIT) or its square root."""

ReadKeys = Literal["averaged", "clean"]
"""The key that a change is read with: the averaged key that it is written with, or the clean prompt's (original ROME).
"""


_SEQUENCE = ReadIf("method.sequence.history", but=(None,))
_HISTORY = ReadIf("method.sequence.history", ("full", "compressed"))
_COMPRESSED = ReadIf("method.sequence.history", ("compressed",))


class SequenceSettings(Section):
    """How batches are written one after the other into the same weights."""

    history: Literal["none", "full", "compressed"] | None = Field(
        None,
        description="which keys of earlier batches are preserved: none, all, or their principal directions; null "
        "writes every batch into the unedited weights instead",
    )
    history_keys: Annotated[Literal["after_write", "as_written"], _HISTORY] = Field(
        "after_write",
        description="the keys that the history keeps: read again after all layers are written (after_write), or those "
        "that the edit was computed with (as_written); scores hardly differ",
    )
    tau: Annotated[int, _COMPRESSED] = Field(500, ge=1, description="keys between compressions of the history")
    energy: Annotated[float, _COMPRESSED] = Field(
        0.99, gt=0, le=1, description="share of the keys' squared norm that a compression keeps"
    )
    most: Annotated[int, _COMPRESSED] = Field(
        3000, ge=1, description="most principal directions that a compression keeps"
    )
    checkpoint_every: Annotated[int, _SEQUENCE] = Field(50, ge=1, description="batches between checkpoints")
    evaluate_at: Annotated[list[int] | None, _SEQUENCE] = Field(
        None, description="numbers of facts to score after, rounded up to whole batches; null for ten, evenly spaced"
    )


class RectSettings(Section):
    """Which part of a change RECT keeps."""

    kept: float = Field(
        0.4, gt=0, le=1, description="share of a change's entries that is kept; public code has 0.4 and 0.2"
    )


class PruneSettings(Section):
    """How far PRUNE lowers singular values."""

    base: float = Field(
        math.e, gt=1, le=1e6, description="a, base of the logarithm; larger lowers more. Published: e, 2, 1.5 and 1.2"
    )


class SimieSettings(Section):
    """How much SimIE trusts the keys of a batch."""

    ridge: float = Field(
        1e4, gt=0, le=1e30, description="multiple of the identity that P starts from; published: 10 for MEMIT, else 1e4"
    )


class MethodSettings(ContextSettings, PreservationSettings):
    """How facts are written."""

    name: str = Field(description="name of the choice, for tables")
    layers: Annotated[list[int], Field(min_length=1)] = Field(description="edited layers, counted from 0")
    slack: Annotated[float, SOLVES] = Field(
        1, ge=0, le=1e12, description="gamma: 0 forces the new facts, 1 is least squares"
    )
    slack_of_one: Annotated[
        float | None, SOLVES, ReadIf("method.relaxes", (True,), needs="a method whose slack is between 0 and 1")
    ] = Field(None, ge=0, le=1e12, description="gamma of a batch of one fact; null for slack")
    spread: Annotated[Spread, SOLVES, ReadIf("method.one_layer", (False,), needs="several layers")] = Field(
        "even", description="how a residual is divided among the layers"
    )
    clean_weight: Annotated[float | None, SOLVES] = Field(
        0.5, ge=0, le=1, description="weight of the clean prompt in an averaged key; null for equal weights"
    )
    read_keys: Annotated[ReadKeys, SOLVES] = Field(
        "averaged", description="key that a change is read with: averaged, or the clean one"
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        16, description="facts written together; instances of several facts, if the dataset has them"
    )
    value: Annotated[ValueSettings, SOLVES] = Field(default_factory=ValueSettings)
    refiner: Annotated[str | None, SOLVES] = Field(
        None, description="what is done to a finished change, whatever its method: rect, prune, or null for nothing"
    )
    rect: Annotated[RectSettings, SOLVES, ReadIf("method.refiner", ("rect",))] = Field(default_factory=RectSettings)
    prune: Annotated[PruneSettings, SOLVES, ReadIf("method.refiner", ("prune",))] = Field(default_factory=PruneSettings)
    wrapper: Annotated[str | None, SOLVES, _SEQUENCE] = Field(
        None, description="how a sequence is made of edits of the unedited weights: simie; null edits those before it"
    )
    simie: Annotated[SimieSettings, SOLVES, ReadIf("method.wrapper", ("simie",))] = Field(default_factory=SimieSettings)
    sequence: SequenceSettings = Field(default_factory=SequenceSettings)

    @field_validator("layers")
    @classmethod
    def _layers_once(cls, layers: list[int]) -> list[int]:
        if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
            raise InputError(
                "method.layers names a layer twice.",
                got=f"{layers}",
                remedy=f"name {twice[0]} once; each is edited once",
            )
        return layers

    @property
    def one_layer(self) -> bool:
        """Whether only one layer is edited."""
        return len(set(self.layers)) == 1

    @property
    def relaxes(self) -> bool:
        """Whether the slack is between a constraint (0) and least squares (1). One fact may then have its own."""
        return 0 < self.slack < 1

    @property
    def in_sequence(self) -> bool:
        """Whether each batch is written into the weights that the one before it left."""
        return self.sequence.history is not None

    def slack_for(self, facts: int) -> float:
        """gamma of a batch of ``facts`` facts."""
        return self.slack_of_one if facts == 1 and self.slack_of_one is not None else self.slack
