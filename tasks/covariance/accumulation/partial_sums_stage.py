"""Partial sums over a stream of keys: checkpoints that a killed process, or a run with more tokens, continues from."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.removal import discard
from factsmith.artifacts.store import Store
from factsmith.tasks.covariance.accumulation.section_stage import load_section
from factsmith.tasks.covariance.moments import Moments, SectionSums
from factsmith.tasks.covariance.stage import new_moments
from factsmith.tasks.keys.stage import KeySource
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["PartialSums", "checkpoint_series", "last_checkpoint"]

logger = logging.getLogger(__name__)

_SUMS = "sums.safetensors"
"""Holds the moments of each layer N over the complete sections, ``layer.N.total``, and over the rows after them,
``layer.N.open``: ``outer`` (d_k, d_k), of which only one triangle is used, and ``sum`` (d_k,), float64."""


def checkpoint_series(keys: str) -> Series:
    """The series of the partial sums over a series of keys, given by its digest."""
    return Series("accumulation", 2, {}, {"keys": keys})


def last_checkpoint(store: Store, series: Series, layers: Sequence[int], count: int) -> Artifact | None:
    """The checkpoint with the most rows that a sum over ``count`` keys of ``layers`` can continue from.

    A checkpoint of more layers is usable too, because some of its layers may have been finished since.
    """
    usable = [
        one for one in store.members(series) if set(layers) <= set(one.key["layers"]) and one.key["rows"] <= count
    ]
    return max(usable, key=lambda one: int(one.key["rows"]), default=None)


class PartialSums:
    """Moments of some layers over the first rows of the key stream.

    Args:
        workspace: the run's workspace.
        source: the keys.
        layers: the layers to sum up.
        count: the number of rows wanted; a checkpoint with more rows cannot be used.
        made_from: the artifacts that the keys are computed from.

    Attributes:
        layers: the layers.
        rows: the rows that are summed up so far.
    """

    def __init__(
        self, workspace: Workspace, source: KeySource, layers: Sequence[int], count: int, made_from: Sequence[Artifact]
    ) -> None:
        self.layers = list(layers)
        self._store = workspace.store
        self._seconds = workspace.runtime.checkpoint_seconds
        self._made = {**workspace.made, **source.model.made}
        self._series = checkpoint_series(source.series.digest)
        self._made_from = made_from
        self._new = partial(new_moments, workspace, source.model.key_width)
        self._sums = {layer: SectionSums(self._new) for layer in layers}
        self._shared: list[Artifact] = []
        self._checkpoint = last_checkpoint(self._store, self._series, layers, count)
        self.rows = self._saved = int(self._checkpoint.key["rows"]) if self._checkpoint else 0
        if self._checkpoint:
            logger.info("covariance: continuing after %s tokens", f"{self.rows:,}")
            self._resume(self._checkpoint)
        self._saved_at = time.monotonic()

    @property
    def inside(self) -> bool:
        """Whether a section has been begun."""
        return self._sums[self.layers[0]].open is not None

    def update(self, rows: Mapping[int, Tensor]) -> None:
        """Add a group of rows of each layer."""
        for layer, its in rows.items():
            self._sums[layer].update(its)
        self.rows = self._sums[self.layers[0]].count

    def close(self) -> None:
        """A section is complete."""
        for sums in self._sums.values():
            sums.close()

    def add(self, section: Mapping[int, Moments]) -> None:
        """Add the moments of the next section of each layer."""
        for layer, moments in section.items():
            self._sums[layer].add(moments)
        self.rows = self._sums[self.layers[0]].count

    def add_shared(self, artifacts: Mapping[int, Artifact]) -> None:
        """Add the moments of the next section of each layer, which are in the store."""
        self.add({layer: load_section(artifact, self._new()) for layer, artifact in artifacts.items()})
        self._shared += artifacts.values()

    def take(self, layer: int) -> Moments:
        """The moments of a layer over all rows. They are not kept here."""
        total = self._sums.pop(layer).total
        assert total is not None
        return total

    def save_if_due(self) -> None:
        """Publish a checkpoint if the last one is old, and remove that one."""
        if self.rows == self._saved or time.monotonic() - self._saved_at < self._seconds:
            return
        recipe = self._series.member(layers=self.layers, rows=self.rows)
        with self._store.draft(recipe) as draft:
            parts = {
                f"layer.{layer}.{name}": moments
                for layer, sums in self._sums.items()
                for name, moments in (("total", sums.total), ("open", sums.open))
                if moments is not None
            }
            tensors = {f"{name}.sum": one.sum for name, one in parts.items()}
            save_tensors(draft.path / _SUMS, tensors | {f"{name}.outer": one.outer for name, one in parts.items()})
            counts = {name: one.count for name, one in parts.items()}
            draft.summary = {"layers": self.layers, "tokens": self.rows, "counts": counts}
            draft.made = self._made
            draft.read_from(*self._made_from)
        if self._checkpoint and self._checkpoint.key["layers"] == self.layers:
            discard(self._store, self._checkpoint)
        self._checkpoint, self._saved = self._store.get(recipe), self.rows
        self._saved_at = time.monotonic()
        for artifact in self._shared:  # The checkpoint has them.
            discard(self._store, artifact)
        self._shared.clear()

    def _resume(self, checkpoint: Artifact) -> None:
        for layer, sums in self._sums.items():
            for name in ("total", "open"):
                part = f"layer.{layer}.{name}"
                if (count := checkpoint.summary["counts"].get(part)) is not None:
                    moments = self._new()
                    device = str(moments.outer.device)
                    tensors = load_tensors(checkpoint.path / _SUMS, device, [f"{part}.sum", f"{part}.outer"])
                    moments.resume(count, tensors[f"{part}.sum"], tensors[f"{part}.outer"])
                    setattr(sums, name, moments)
