"""The records of a run, in the batches that are written together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.selection import in_batches, scored_batches
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["FactBatches", "fact_digests", "ordered_facts"]


@dataclass(frozen=True)
class FactBatches:
    """Batches of records.

    Attributes:
        batches: the records of each batch.
        scored: in a sequence, the numbers of batches after which the model is scored, ascending; the last is the number
            of all batches. ``None`` if every batch is written into the unedited weights.
    """

    batches: Sequence[Sequence[Record]]
    scored: Sequence[int] | None = None

    @classmethod
    def select(
        cls,
        records: Sequence[Record],
        settings: DatasetSettings,
        batch_size: int | Literal["all"],
        *,
        in_sequence: bool,
        evaluate_at: Sequence[int] | None,
    ) -> FactBatches:
        """The batches of ``records``, which the settings have selected.

        Raises:
            InputError: there are fewer records than the batches or ``evaluate_at`` need.
        """
        batches = in_batches(records, settings, batch_size)
        scored = scored_batches([len(batch) for batch in batches], evaluate_at) if in_sequence else None
        return cls(batches, scored)

    def without(self, record: Record) -> FactBatches:
        """The batches that ``record`` leaves: in a sequence all of them, and otherwise its own batch, without it.

        A batch of this record alone is left out. A sequence is then scored at its end.
        """
        batches = self.batches if self.in_sequence else [batch for batch in self.batches if record in batch]
        return self.holding({one.request.digest for batch in batches for one in batch} - {record.request.digest})

    def holding(self, facts: Collection[str]) -> FactBatches:
        """The records whose requests have these digests, in their batches. A sequence is then scored at its end."""
        left = [[one for one in batch if one.request.digest in facts] for batch in self.batches]
        left = [batch for batch in left if batch]
        return FactBatches(left, [len(left)] if self.in_sequence else None)

    @property
    def in_sequence(self) -> bool:
        """Whether each batch is written into the weights that the one before it left."""
        return self.scored is not None

    @property
    def records(self) -> list[Record]:
        """All records, batch by batch."""
        return [record for batch in self.batches for record in batch]

    @property
    def requests(self) -> list[EditRequest]:
        """All edit requests, batch by batch."""
        return [record.request for record in self.records]

    @property
    def written(self) -> Sequence[Sequence[Record]]:
        """The records that each final edit holds: those of a batch, or in a sequence all of them."""
        return [self.records] if self.in_sequence else self.batches

    @property
    def counts(self) -> list[int]:
        """The number of facts written after each batch of a sequence."""
        return list(accumulate(map(len, self.batches)))


def ordered_facts(batch: Sequence[Record]) -> list[Record]:
    """The records to write of a batch, in the order in which they are solved, whatever order they came in.

    A fact that several records ask for is written once.
    """
    by_digest = {record.request.digest: record for record in batch}
    return [by_digest[digest] for digest in sorted(by_digest)]


def fact_digests(batch: Sequence[Record]) -> list[str]:
    """The digests of a batch's facts, each once, the same whatever order they came in."""
    return sorted({record.request.digest for record in batch})
