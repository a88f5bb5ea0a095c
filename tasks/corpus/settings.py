"""Settings of the corpus, and of how many of its tokens are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from factsmith.artifacts.errors import InputError
from factsmith.tasks.pipeline.settings import ReadIf, Section

__all__ = ["ANY_STATISTICS", "AutoSettings", "CorpusSettings"]

ANY_STATISTICS = "any"
"""``corpus.statistics`` that are the only ones that have been imported for the model."""


_AUTO = "corpus.dynamic_multiplier=auto, and a method that uses C0"
_FROM_FILE = ReadIf("corpus.source", ("local",))
_FROM_HUB = ReadIf("corpus.source", ("hub",))
_FROM_EITHER = ReadIf("corpus.source", ("local", "hub"))
_STRATIFIED = ReadIf("corpus.sampling", ("stratified",))
_TEXT = ReadIf("corpus.source", but=("imported",))
_COLLECTS = ReadIf("corpus.statistics", (None,))
_USES_KEYS = ReadIf(
    "method.reads", ("corpus", "samples"), needs="a method that uses C0 or a low-rank model of the keys"
)
_COUNTS = ReadIf("method.reads", ("corpus",), needs="a method that uses C0") | ReadIf("method.in_sequence", (True,))
"""A sequence is scored on text beyond the tokens that any method would read, whatever its own method reads."""


class AutoSettings(Section):
    """How ``corpus.dynamic_multiplier=auto`` finds d_m, and how held-out leverage is measured."""

    tolerance: Annotated[float, ReadIf("finds_tokens", (True,), needs=_AUTO)] = Field(
        1.25, gt=1, description="held-out leverage at which the search for d_m stops; ideal is 1"
    )
    steps: Annotated[
        list[Annotated[float, Field(gt=0)]], Field(min_length=1), ReadIf("finds_tokens", (True,), needs=_AUTO)
    ] = Field([2, 3, 4, 6, 8, 10, 15, 20, 30, 40], description="values of d_m to try in ascending order")
    held_out: Annotated[int, ReadIf("finds_tokens", (True,), needs=f"{_AUTO}, or `precompute --report`")] = Field(
        4096, ge=1, description="tokens after those of C0 whose keys are used to measure held-out leverage"
    )


class CorpusSettings(Section):
    """The text whose keys an edit must preserve."""

    name: str = Field(description="name of the choice, for tables")
    source: Literal["embedded", "local", "hub", "imported"] = Field(description="where the documents come from")
    statistics: Annotated[str | None, _USES_KEYS] = Field(
        None,
        description="name of C0 that import-stats has read, in place of the corpus's keys; any: the model's only one",
    )
    path: Annotated[Path | None, _FROM_FILE] = Field(None, description="file (local): .jsonl, .txt or .parquet")
    repository: Annotated[str | None, _FROM_HUB] = Field(
        None, description="dataset on the hub, or a folder that holds one (hub)"
    )
    subset: Annotated[str | None, _FROM_HUB] = Field(
        None, description="subset of the repository, if it has several (hub)"
    )
    split: Annotated[str, _FROM_HUB] = Field("train", description="split of the repository (hub)")
    revision: Annotated[str | None, _FROM_HUB] = Field(
        None, description="branch, tag or commit of the repository; null for main (hub)"
    )
    field: Annotated[str, _FROM_EITHER] = Field(
        "text", description="field of a record that holds the text (.jsonl, .parquet, hub)"
    )
    seed: Annotated[int, _TEXT, ReadIf("corpus.sampling", but=("first",)) | ReadIf("corpus.source", ("embedded",))] = (
        Field(0, ge=0, description="seed of the order of documents")
    )
    sampling: Annotated[Literal["first", "shuffled", "stratified"], _TEXT, _FROM_EITHER | _STRATIFIED] = Field(
        "shuffled", description="order of documents: as in the source, shuffled by seed, or alternating between topics"
    )
    pool: Annotated[int, _STRATIFIED | _FROM_HUB] = Field(
        10_000, ge=1, description="documents to cluster (stratified), or size of the shuffle buffer of a stream"
    )
    topics: Annotated[int, _STRATIFIED] = Field(16, ge=1, description="number of clusters (stratified)")
    block_length: Annotated[int, _TEXT] = Field(
        128, ge=2, description="tokens per block; a block never spans two documents"
    )
    blocks_per_document: Annotated[int | None, _TEXT] = Field(
        None, ge=1, description="most blocks of one document; null for all"
    )
    dynamic_multiplier: Annotated[
        Annotated[float, Field(gt=0, le=1e5)] | Literal["auto"], _COUNTS, _COLLECTS, ReadIf("corpus.tokens", (None,))
    ] = Field(10.0, description="d_m: tokens to use, in multiples of d_k; 'auto' finds how many C0 needs")
    tokens: Annotated[int | None, _COUNTS, _COLLECTS] = Field(
        None, ge=1, description="tokens to use, instead of dynamic_multiplier"
    )
    key_dtype: Annotated[Literal["float32", "float16"], _COLLECTS] = Field(
        "float32", description="data type of the stored keys"
    )
    keep_keys: Annotated[bool | None, _COLLECTS] = Field(
        None,
        description="whether keys are stored or only summed up; null stores them on a CPU, where computing them again "
        "takes longer than reading them, and on a GPU only if they are read again",
    )
    auto: AutoSettings = Field(default_factory=AutoSettings)

    @property
    def is_auto(self) -> bool:
        """Whether the number of tokens is found by held-out leverage."""
        return self.statistics is None and self.tokens is None and self.dynamic_multiplier == "auto"

    @property
    def multipliers(self) -> list[float]:
        """d_m, or the values of d_m to try, ascending."""
        return sorted(set(self.auto.steps)) if self.dynamic_multiplier == "auto" else [self.dynamic_multiplier]

    @model_validator(mode="after")
    def _statistics_are_given(self) -> Self:
        if self.source == "imported" and self.statistics is None:
            raise InputError(
                "corpus.source=imported has no text, so its statistics must be named.",
                got="corpus.statistics=null",
                remedy="leave it out, or set it to a name that `factsmith import-stats` has shown",
            )
        return self

    @model_validator(mode="after")
    def _auto_keeps_keys(self) -> Self:
        if self.is_auto and self.keep_keys is False:
            raise InputError(
                "corpus.dynamic_multiplier=auto reuses the keys of each step in the next one, so they must be kept.",
                got="corpus.keep_keys=false",
                remedy="leave out corpus.keep_keys; corpus.auto.steps limits how many keys there can be",
            )
        return self
