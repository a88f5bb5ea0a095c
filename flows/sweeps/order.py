"""Which cell of a sweep comes next."""

from __future__ import annotations

from collections.abc import Mapping

from factsmith.tasks.planning.settings import Settings

__all__ = ["Order"]


class Order:
    """Hands out cells. Those of one model follow each other, and those that need the most tokens come first.

    The latter include what others need. If cells run at once, a process gets a cell of its present model, and none that
    would have to wait for the statistics or value vectors of another cell, as long as there are others.

    Args:
        cells: the settings of the cells, by their places.
    """

    def __init__(self, cells: Mapping[int, Settings]) -> None:
        self._waiting = sorted(cells, key=lambda place: _most_tokens_first(cells[place]))
        self._models = {place: one.model_dump_json(include={"model", "runtime"}) for place, one in cells.items()}
        self._shared = {place: _shared(one) for place, one in cells.items()}
        self._latest: dict[int, str] = {}
        self._begun: dict[str, int] = {}
        self._made: set[str] = set()

    def __call__(self, process: int = 0) -> int | None:
        """The place of the next cell of a process; ``None`` if there is none left."""
        if not self._waiting:
            return None
        latest = self._latest.get(process)

        def later(place: int) -> tuple[int, bool]:
            being_made = sum(one in self._begun and one not in self._made for one in self._shared[place])
            return being_made, self._models[place] != latest

        chosen = min(self._waiting, key=later)  # The first of the best.
        self._waiting.remove(chosen)
        self._latest[process] = self._models[chosen]
        for one in self._shared[chosen]:
            self._begun.setdefault(one, chosen)
        return chosen

    def ended(self, place: int) -> None:
        """A cell has ended. What it was the first to need is there, or can be made by another cell if it failed."""
        self._made |= {one for one, first in self._begun.items() if first == place}


def _most_tokens_first(settings: Settings) -> tuple[str, float, float]:
    """A sort key: by model, then the most tokens first, because these include what cells with fewer need."""
    return settings.model.path, -(settings.corpus.tokens or 0), -settings.corpus.multipliers[-1]


def _shared(settings: Settings) -> tuple[str, str]:
    """What the cell's statistics and its value vectors are made from. Cells that have it in common share them."""
    counts = {"dynamic_multiplier", "tokens", "auto"}
    statistics = settings.model_dump_json(include={"model": True, "corpus": True}, exclude={"corpus": counts})
    contexts = {"value", "contexts", "context_samples", "context_seed"}
    values = settings.model_dump_json(include={"model": True, "dataset": True, "method": contexts})
    return f"{statistics} {settings.method.layers}", f"{values} {settings.method.layers[-1]}"
