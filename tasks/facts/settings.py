"""Settings of the facts to write and of the contexts they are written in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.words import Separator
from factsmith.tasks.model.embedded.world import Split
from factsmith.tasks.pipeline.settings import ReadIf, Section

__all__ = ["ContextSample", "ContextSettings", "DatasetSettings"]


_SAMPLED = ReadIf("method.contexts", (None, "both"))


class DatasetSettings(Section):
    """The facts to write, and the metrics that score them."""

    name: str = Field(description="name of the choice, for tables")
    format: str = Field(description="format of the records: counterfact, embedded, facts, zsre, ...")
    path: Annotated[Path | None, ReadIf("dataset.format", but=("embedded",))] = Field(
        None, description="file of the records"
    )
    separator: Separator = Field(
        "auto",
        description="what stands between a prompt and its object: blank, none, or auto for a blank except in scripts "
        "without blanks",
    )
    split: Split = Field("all", description="tune: the half that settings are tuned on; test: the other half")
    cases: Path | list[int] | None = Field(None, description="case ids to use, or a JSON file that lists them")
    limit: int | None = Field(None, ge=1, description="most records, or instances of several edits, to use")
    seed: int | None = Field(0, ge=0, description="seed of the order of records; null for the order of the file")
    metrics: Annotated[list[str], Field(min_length=1)] = Field(
        ["counterfact"], description="metric families to score: counterfact, generation, greedy, ..."
    )
    batches: int | None = Field(1, ge=1, description="number of batches to write; null for all records")

    @field_validator("metrics")
    @classmethod
    def _metrics_once(cls, metrics: list[str]) -> list[str]:
        if twice := [name for name in metrics if metrics.count(name) > 1]:
            raise InputError(
                "dataset.metrics names a metric family twice.", got=f"{metrics}", remedy=f"name {twice[0]} once"
            )
        return metrics

    def required_path(self) -> Path:
        """The path.

        Raises:
            InputError: none is given.
        """
        if self.path is None:
            raise InputError(f"dataset={self.name} needs a file.", remedy="set dataset.path=FILE")
        return self.path


class ContextSample(Section):
    """Context prefixes of one kind."""

    start: str = Field(min_length=1, description="the words that a prefix starts with")
    length: int = Field(ge=1, description="most tokens of a prefix, including start and special tokens")
    count: int = Field(1, ge=1, description="number of prefixes to sample")


class ContextSettings(Section):
    """The contexts that a fact is written in. These settings are part of ``method``."""

    contexts: Literal["chat", "both"] | Path | None = Field(
        None,
        description="JSON list of context templates; null to sample them, chat for turns of a chat in the model's chat "
        "template, both for both",
    )
    context_samples: Annotated[list[ContextSample], _SAMPLED] = Field(
        [ContextSample(start=start, length=10) for start in ("The", "Therefore", "Because", "I", "You")],
        description="prefixes to sample, each with start, length and count",
    )
    context_seed: Annotated[int, _SAMPLED] = Field(0, ge=0, description="seed of the sampled prefixes")

    @property
    def in_chat(self) -> bool:
        """Whether facts are written in turns of a chat too."""
        return self.contexts in ("chat", "both")
