"""What a source of corpus text offers."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Protocol

__all__ = ["CorpusSource", "release"]


class CorpusSource(Protocol):
    """Documents in an order that never changes: as they stand, or as a seed fixes it."""

    def recipe(self) -> dict[str, Any]:
        """What decides the documents and their order, without paths."""
        ...

    def document(self, place: int) -> tuple[int, str] | None:
        """Index and text of the document at ``place`` of the order; ``None`` behind the last one.

        The same whatever has been asked before; cheapest in ascending order.
        """
        ...


def release(package: str) -> str:
    """Major and minor version of a library, for the recipe of an order that the library decides."""
    return ".".join(metadata.version(package).split(".")[:2])
