"""The embedded model's own corpus: an unlimited number of documents about its invented world."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.model.embedded.world import embedded_world

__all__ = ["EmbeddedCorpus", "open_source"]


def open_source(settings: CorpusSettings, checksum: Callable[[Path], str]) -> EmbeddedCorpus:
    """The documents drawn with ``corpus.seed``. They are independent random draws and need no shuffling."""
    return EmbeddedCorpus(settings.seed)


class EmbeddedCorpus:
    """Documents drawn from the world, each with its own seed.

    Args:
        seed: the seed from which each document's seed is derived.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = embedded_world()

    def recipe(self) -> dict[str, Any]:
        return {"source": "embedded", "world": self.world.fingerprint, "seed": self.seed}

    def document(self, place: int) -> tuple[int, str]:
        return place, self.world.document(random.Random(f"corpus/{self.seed}/{place}"))
