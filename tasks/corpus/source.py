"""What every source of corpus text offers."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Protocol

from factsmith.tasks.corpus.settings import CorpusSettings

__all__ = ["CorpusSource", "order_seed", "release"]


class CorpusSource(Protocol):
    """Documents in an order that never changes: that of the source, or one fixed by a seed."""

    def recipe(self) -> dict[str, Any]:
        """Everything that determines the documents and their order, without paths."""
        ...

    def document(self, place: int) -> tuple[int, str] | None:
        """Index in the source and text of the document at ``place`` in the order, or ``None`` after the last one.

        The answer does not depend on earlier calls. Ascending places are cheapest.
        """
        ...


def order_seed(settings: CorpusSettings) -> int | None:
    """The seed of the order of documents; ``None`` for the order of the source."""
    return None if settings.sampling == "first" else settings.seed


def release(package: str) -> str:
    """Major and minor version of a library that determines an order, for the recipe."""
    return ".".join(metadata.version(package).split(".")[:2])
