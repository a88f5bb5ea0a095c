"""The embedded model's invented world, in CounterFact's schema."""

from __future__ import annotations

from factsmith.tasks.embedded.world import World
from factsmith.tasks.records.reading import RawRecord
from factsmith.tasks.records.record import Record
from factsmith.tasks.settings import DatasetSettings
from factsmith.tasks.suites import counterfact

__all__ = ["load"]


def load(settings: DatasetSettings) -> list[Record]:
    """One record a person of the world, of the split that is asked for."""
    records = World().records(settings.split)
    return [counterfact.parse(RawRecord("the embedded world", index, fields)) for index, fields in enumerate(records)]
