"""The embedded model's invented world, in CounterFact's schema."""

from __future__ import annotations

from functools import cache

from factsmith.tasks.facts.datasets import counterfact
from factsmith.tasks.facts.reading import RawRecord
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.model.embedded.world import Split, embedded_world

__all__ = ["LOADS_SPLITS", "load"]

LOADS_SPLITS = True
"""``load`` applies ``dataset.split`` itself."""


def load(settings: DatasetSettings) -> list[Record]:
    """One record per person of the world, from the split in the settings."""
    return list(_records(settings.split))


@cache  # A sweep reads them once per cell.
def _records(split: Split) -> tuple[Record, ...]:
    records = embedded_world().records(split)
    return tuple(
        counterfact.parse(RawRecord("the embedded world", index, fields)) for index, fields in enumerate(records)
    )
