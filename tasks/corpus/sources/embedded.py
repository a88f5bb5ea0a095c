"""The embedded model's own corpus: documents about its invented world, as many as one likes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.model.embedded.world import World

__all__ = ["EmbeddedCorpus", "open_source"]


def open_source(settings: CorpusSettings, checksum: Callable[[Path], str]) -> EmbeddedCorpus:
    """The documents of ``corpus.seed``. They are random draws, so the first ones are shuffled already."""
    return EmbeddedCorpus(settings.seed)


class EmbeddedCorpus:
    """Documents drawn from the world, each from a seed of its own.

    Args:
        seed: of the documents.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World()

    def recipe(self) -> dict[str, Any]:
        return {"source": "embedded", "world": self.world.fingerprint, "seed": self.seed}

    def document(self, place: int) -> tuple[int, str]:
        return place, self.world.document(random.Random(f"corpus/{self.seed}/{place}"))
