"""No documents: the statistics of a corpus that is not here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factsmith.tasks.corpus.settings import CorpusSettings

__all__ = ["NoDocuments", "open_source"]


def open_source(settings: CorpusSettings, checksum: Callable[[Path], str]) -> NoDocuments:
    """A corpus without documents."""
    return NoDocuments()


class NoDocuments:
    """A corpus without documents."""

    def recipe(self) -> dict[str, Any]:
        return {"source": "imported"}

    def document(self, place: int) -> tuple[int, str] | None:
        return None
