"""Rows that are computed once and shared: value vectors by fact, scores by record.

Each artifact of a series holds some rows. Which artifact holds a row depends on the order of requests, but the row's
content does not. A recipe that uses rows therefore names the series and the rows, and never the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Store

__all__ = ["Row", "RowSeries", "holders"]


@dataclass(frozen=True)
class Row:
    """The location of a row: an artifact, and the row's index in it."""

    artifact: Artifact
    place: int


def holders(rows: Iterable[Row]) -> list[Artifact]:
    """The artifacts that hold ``rows``, each once, in the order of the rows."""
    return list({row.artifact.digest: row.artifact for row in rows}.values())


class RowSeries:
    """The rows of ``series`` in ``store``."""

    def __init__(self, store: Store, series: Series) -> None:
        self.store = store
        self.series = series

    def find(self, *, here: bool = False) -> dict[str, Row]:
        """All rows in the store, by digest; those in this machine's folder if only they are asked for."""
        return {
            digest: Row(artifact, place)
            for artifact in self.store.members(self.series, here=here)
            for place, digest in enumerate(artifact.key["rows"])
        }

    def missing(self, wanted: Sequence[str]) -> list[str]:
        """The digests of the rows of ``wanted`` that are not in the store, each once."""
        found = self.find()
        return [digest for digest in dict.fromkeys(wanted) if digest not in found]

    def get_or_build(
        self,
        wanted: Sequence[str],
        build: Callable[[Draft, list[str]], None],
        *,
        at_once: int,
        check: Callable[[list[str]], None] = lambda missing: None,
    ) -> tuple[dict[str, Row], int]:
        """All rows in the store, and the number of rows that were built now.

        Missing rows are built in groups of ``at_once``. Each group is published when it is complete, so a killed
        process loses at most one group.

        Args:
            wanted: digests of the rows that must exist afterwards.
            build: writes the rows of some digests, in that order, into a draft.
            at_once: rows of an artifact.
            check: called with the digests of all missing rows before the first of them is built.
        """
        for here in (True, False) if self.store.upstream else (True,):  # What is here need not be looked for elsewhere.
            found = self.find(here=here)
            if all(digest in found for digest in wanted):
                return found, 0
        with self.store.lock(self.series.digest):
            missing = self.missing(wanted)  # Another process may have built them while this one waited.
            check(missing)
            for first in range(0, len(missing), at_once):
                group = missing[first : first + at_once]
                with self.store.draft(self.series.member(rows=group)) as draft:
                    build(draft, group)
        return self.find(), len(missing)
