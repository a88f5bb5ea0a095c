"""What a source of corpus text offers."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["CorpusSource"]


class CorpusSource(Protocol):
    """Documents in an order that a seed fixes."""

    def recipe(self) -> dict[str, Any]:
        """What decides the documents and their order, without paths."""
        ...

    def document(self, place: int) -> tuple[int, str] | None:
        """Index and text of the document at ``place`` of the seeded order; ``None`` behind the last one."""
        ...
