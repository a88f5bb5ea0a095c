"""From settings to a corpus: which source it is, and in which order its documents come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.source import CorpusSource
from factsmith.tasks.corpus.sources.embedded import EmbeddedCorpus
from factsmith.tasks.corpus.sources.local import open_local
from factsmith.tasks.corpus.stratified import StratifiedCorpus, Work
from factsmith.tasks.planning.settings import CorpusSettings

__all__ = ["open_corpus"]

Checksum = Callable[[Path], str]


def open_corpus(settings: CorpusSettings, *, checksum: Checksum, work: Work) -> CorpusSource:
    """The corpus that ``settings`` describe.

    Args:
        settings: of the corpus.
        checksum: gives the SHA-256 of a file.
        work: shows how far long work is.

    Raises:
        InputError: it is not there, or cannot be read.
    """
    source = _SOURCES[settings.source](settings, checksum)
    if settings.sampling != "stratified":
        return source
    return StratifiedCorpus(source, pool=settings.pool, topics=settings.topics, seed=settings.seed, work=work)


def _embedded(settings: CorpusSettings, checksum: Checksum) -> CorpusSource:
    # Its documents have no order but that in which they are drawn: the first ones are shuffled already.
    return EmbeddedCorpus(settings.seed)


def _local(settings: CorpusSettings, checksum: Checksum) -> CorpusSource:
    if settings.path is None:
        raise InputError(f"corpus={settings.name} needs a file.", remedy="set corpus.path=FILE")
    return open_local(settings.path.expanduser(), field=settings.field, seed=_order_seed(settings), checksum=checksum)


def _hub(settings: CorpusSettings, checksum: Checksum) -> CorpusSource:
    from factsmith.tasks.corpus.sources.hub import open_hub  # its libraries take a second to import

    if settings.repository is None:
        raise InputError(f"corpus={settings.name} needs a dataset.", remedy="set corpus.repository=OWNER/NAME")
    return open_hub(
        settings.repository,
        revision=settings.revision,
        subset=settings.subset,
        split=settings.split,
        field=settings.field,
        seed=_order_seed(settings),
        pool=settings.pool,
        checksum=checksum,
    )


def _order_seed(settings: CorpusSettings) -> int | None:
    return None if settings.sampling == "first" else settings.seed


_SOURCES: dict[str, Callable[[CorpusSettings, Checksum], CorpusSource]] = {
    "embedded": _embedded,
    "hub": _hub,
    "local": _local,
}
