"""The embedded model's invented world, in CounterFact's schema."""

from __future__ import annotations

from factsmith.tasks.facts.datasets import counterfact
from factsmith.tasks.facts.reading import RawRecord
from factsmith.tasks.facts.record import Record
from factsmith.tasks.model.embedded.world import World
from factsmith.tasks.planning.settings import DatasetSettings

__all__ = ["load"]


def load(settings: DatasetSettings) -> list[Record]:
    """One record a person of the world, of the split that is asked for."""
    records = World().records(settings.split)
    return [counterfact.parse(RawRecord("the embedded world", index, fields)) for index, fields in enumerate(records)]
