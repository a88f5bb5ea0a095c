"""All settings of a run. Each room declares its own; this module puts them together."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from factsmith.tasks.abilities.settings import AbilitySettings
from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.evaluation.settings import DriftSettings
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.locate.settings import TraceSettings
from factsmith.tasks.model.settings import ModelSettings
from factsmith.tasks.pipeline.settings import ReadIf, RuntimeSettings, Section, TrackingSettings

__all__ = ["RENAMED", "Settings"]

RENAMED = {"dataset.suite": "dataset.format"}
"""Settings that had another name in an earlier version: the old name and the new one."""


_READS_CORPUS = ReadIf("reads_corpus", (True,), needs="a method that uses keys of a corpus, or a measure of drift")
_MEASURES_DRIFT = (
    ReadIf("method.reads", but=("nothing",), needs="a method that uses keys of a corpus")
    | ReadIf("method.in_sequence", (True,))
    | ReadIf("method.solves", (False,))
)


class Settings(Section):
    """The settings of a run, resolved."""

    model: ModelSettings
    corpus: Annotated[CorpusSettings, _READS_CORPUS]
    method: WritingSettings
    dataset: DatasetSettings
    abilities: AbilitySettings = Field(default_factory=AbilitySettings)
    drift: Annotated[DriftSettings, _MEASURES_DRIFT, ReadIf("corpus.source", but=("imported",))] = Field(
        default_factory=DriftSettings
    )
    trace: TraceSettings = Field(default_factory=TraceSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)

    @property
    def reads_corpus(self) -> bool:
        """Whether the run reads a corpus: for its method, for a sequence, or to measure the drift of an editor."""
        method = self.method
        return method.reads != "nothing" or method.in_sequence or (not method.solves and self.drift.edits > 0)

    @property
    def imports(self) -> str | None:
        """The name of the imported statistics that C0 is taken from; ``None`` if the run makes its own or uses none."""
        return self.corpus.statistics if self.method.solves and self.method.reads != "nothing" else None

    @property
    def measures_drift(self) -> bool:
        """Whether drift is measured: it is asked for, and there is text of a corpus to measure it on."""
        return self.drift.edits > 0 and self.reads_corpus and self.corpus.source != "imported"

    @property
    def finds_tokens(self) -> bool:
        """Whether the run finds how many tokens C0 needs: it is asked to, and its method uses C0."""
        return self.corpus.is_auto and self.method.reads == "corpus"
