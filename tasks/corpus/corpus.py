"""From the corpus settings to documents in a fixed order."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.corpus.source import CorpusSource
from factsmith.tasks.corpus.stratified import Progress, StratifiedCorpus

__all__ = ["Corpus", "open_corpus"]


@dataclass(frozen=True)
class Corpus:
    """The corpus of a run.

    Attributes:
        settings: the corpus settings.
        source: the documents, in their order.
    """

    settings: CorpusSettings
    source: CorpusSource


def open_corpus(settings: CorpusSettings, *, checksum: Callable[[Path], str], progress: Progress) -> Corpus:
    """Open the corpus that ``settings`` describe.

    Args:
        settings: the corpus settings.
        checksum: computes the SHA-256 of a file.
        progress: shows the progress of long work.

    Raises:
        InputError: the corpus does not exist, or cannot be read.
    """
    module = importlib.import_module(f"factsmith.tasks.corpus.sources.{settings.source}")
    source: CorpusSource = module.open_source(settings, checksum)
    if settings.sampling == "stratified":
        source = StratifiedCorpus(
            source, pool=settings.pool, topics=settings.topics, seed=settings.seed, progress=progress
        )
    return Corpus(settings, source)
