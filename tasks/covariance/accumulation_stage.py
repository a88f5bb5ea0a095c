"""Stage ``covariance`` without stored keys: each key is added to the moments as the model gives it.

This is for token counts whose keys do not fit on a disk. The artifacts have the same bytes as those that stage
``covariance`` builds from stored keys, because the same values are added in the same groups. On several devices, whose
sums are added at the end, they differ in the last bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.removal import discard
from factsmith.artifacts.store import Store
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, Moments, grouped
from factsmith.tasks.covariance.stage import (
    Covariances,
    covariance_series,
    new_moments,
    save_moments,
)
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.keys.reader import KeyUnit
from factsmith.tasks.keys.stage import KeySource, key_spans
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.turns import in_turn
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["accumulate", "checkpoint_series", "last_checkpoint"]

logger = logging.getLogger(__name__)

_TENSORS = "sums.safetensors"
"""Holds ``layer.N.outer`` (d_k, d_k), of which only one triangle is used, and ``layer.N.sum`` (d_k,), float64."""


def checkpoint_series(keys: str) -> Series:
    """The series of the partial sums over a series of keys, given by its digest."""
    return Series("accumulation", 1, {}, {"keys": keys})


def last_checkpoint(store: Store, series: Series, layers: Sequence[int], count: int) -> Artifact | None:
    """The checkpoint with the most rows that a sum over ``count`` keys of ``layers`` can continue from.

    A checkpoint of more layers is usable too, because some of its layers may have been finished since.
    """
    usable = [
        one for one in store.members(series) if set(layers) <= set(one.key["layers"]) and one.key["rows"] <= count
    ]
    return max(usable, key=lambda one: int(one.key["rows"]), default=None)


@stage("covariance")
def accumulate(workspace: Workspace, source: KeySource, count: int) -> Outcome[Covariances]:
    """Moments of the first ``count`` keys of every edited layer that lacks them, from one pass over the corpus.

    The partial sums are published every ``runtime.checkpoint_seconds`` and replace the earlier ones. A killed process,
    or a run with more tokens, continues from them.

    Raises:
        InputError: a key is NaN, infinite, or too large for ``corpus.key_dtype``; names the layer.
    """
    store, keys = workspace.store, source.series
    series = covariance_series(keys.digest, count)
    held: dict[int, Mapping[str, Tensor]] = {}
    built = 0
    with progress("covariance", count) as advance, store.lock(keys.digest):
        absent = [layer for layer in source.layers if store.find(series.member(layer=layer)) is None]
        if absent:
            made_from = [store.get(source.model.recipe), *source.tokens.holding((0, count))]
            sums = _PartialSums(workspace, source, absent, count, made_from)
            advance(sums.rows)
            built = count - sums.rows
            sum_up = _sum_up if len(workspace.devices) == 1 else _sum_up_in_turn
            sum_up(workspace, source, sums, count, advance)

            def build(draft: Draft, layer: int) -> None:
                moments = sums.take(layer)
                draft.read_from(*made_from)
                save_moments(workspace, draft, layer, moments, held)
                draft.made |= source.model.made

            store.get_or_build_each({layer: series.member(layer=layer) for layer in absent}, build)
        else:
            advance(count)
    found = {layer: store.get(series.member(layer=layer)) for layer in source.layers}
    return Outcome(
        Covariances(series, found, held),
        series.address,
        bool(absent),
        {"tokens": count, "tokens_built": built, "bytes": sum(one.manifest.size for one in found.values())},
    )


def _sum_up(
    workspace: Workspace, source: KeySource, sums: _PartialSums, count: int, advance: Callable[[int], None]
) -> None:
    # Keys are added up where the model has made them, and never leave the device.
    reader = source.reader(workspace)
    layers = list(sums.moments)
    saved = time.monotonic()
    for start, stop in key_spans(source.model.key_width, count, count):
        if stop <= sums.rows:
            continue
        if time.monotonic() - saved >= workspace.runtime.checkpoint_seconds and start > sums.saved:
            sums.save()
            saved = time.monotonic()
        first = max(start, sums.rows)  # Several devices leave a checkpoint between two spans.
        for group in grouped(reader.rows((first, stop), layers, device=workspace.device), ROWS_PER_UPDATE):
            for layer, rows in group.items():
                sums.moments[layer].update(rows)
        advance(stop - first)
        sums.rows = stop


def _sum_up_in_turn(
    workspace: Workspace, source: KeySource, sums: _PartialSums, count: int, advance: Callable[[int], None]
) -> None:
    """Sum up on several devices, which take the units in turn. Each of them has sums of its own."""
    reader = source.reader(workspace)
    layers = list(sums.moments)

    def add(device: tuple[Decoder, Mapping[int, Moments]], unit: KeyUnit) -> int:
        decoder, moments = device
        for layer, rows in reader.read(decoder, unit, layers).items():
            for group in rows.split(ROWS_PER_UPDATE):
                moments[layer].update(group)
        return unit.wanted[1]

    devices = list(zip(source.model.replicas, sums.parts, strict=True))
    units, number = reader.units((sums.rows, count)), 0
    while sums.rows < count:
        some = _until(time.monotonic() + workspace.runtime.checkpoint_seconds, units)
        with closing(in_turn(devices, add, some, first=number, begin=workspace.limit_threads)) as added:
            for stop in added:
                advance(stop - sums.rows)
                sums.rows = stop
                number += 1
        if sums.rows < count:
            sums.save()


def _until(moment: float, units: Iterator[KeyUnit]) -> Iterator[KeyUnit]:
    """One unit, and further ones until ``moment``."""
    for unit in units:
        yield unit
        if time.monotonic() >= moment:
            return


def _added(total: Moments, *others: Moments) -> Moments:
    """``total``, to which ``others`` have been added in their order."""
    for other in others:
        total.add(other)
    return total


class _PartialSums:
    """Moments of some layers over the first rows of the key stream.

    Args:
        workspace: the run's workspace.
        source: the keys.
        layers: the layers to sum up.
        count: the number of rows wanted; a checkpoint with more rows cannot be used.
        made_from: the artifacts that the keys are computed from.

    Attributes:
        parts: the moments of each layer that each device has summed up.
        rows: the rows that they cover.
        saved: the rows that the last checkpoint covers.
    """

    def __init__(
        self, workspace: Workspace, source: KeySource, layers: Sequence[int], count: int, made_from: Sequence[Artifact]
    ) -> None:
        self._store = workspace.store
        self._made = {**workspace.made, **source.model.made}
        self._series = checkpoint_series(source.series.digest)
        self._made_from = made_from
        self._checkpoint = last_checkpoint(self._store, self._series, layers, count)
        self.rows = self.saved = int(self._checkpoint.key["rows"]) if self._checkpoint else 0
        self.parts = [
            {layer: new_moments(workspace, source.model.key_width, device) for layer in layers}
            for device in workspace.devices
        ]
        if self._checkpoint:
            logger.info("covariance: continuing after %s tokens", f"{self.rows:,}")
            names = [f"layer.{layer}.{part}" for layer in layers for part in ("sum", "outer")]
            tensors = load_tensors(self._checkpoint.path / _TENSORS, str(workspace.device), names)
            for layer, moments in self.moments.items():
                moments.resume(self.rows, tensors.pop(f"layer.{layer}.sum"), tensors.pop(f"layer.{layer}.outer"))

    @property
    def moments(self) -> dict[int, Moments]:
        """The moments of each layer that the first device has summed up, from those of the checkpoint on."""
        return self.parts[0]

    def take(self, layer: int) -> Moments:
        """The moments of a layer over all rows: those of the devices, added in their order. They are not kept here."""
        return _added(*(part.pop(layer) for part in self.parts))

    def save(self) -> None:
        """Publish a checkpoint and remove the earlier one."""
        recipe = self._series.member(layers=list(self.moments), rows=self.rows)
        with self._store.draft(recipe) as draft:
            tensors: dict[str, Tensor] = {}
            for layer, moments in self.moments.items():
                others = [part[layer] for part in self.parts[1:]]
                total = _added(moments.copy(), *others) if others else moments
                tensors |= {f"layer.{layer}.sum": total.sum, f"layer.{layer}.outer": total.outer}
            save_tensors(draft.path / _TENSORS, tensors)
            draft.summary = {"layers": list(self.moments), "tokens": self.rows}
            draft.made = self._made
            draft.read_from(*self._made_from)
        if self._checkpoint and self._checkpoint.key["layers"] == list(self.moments):
            discard(self._store, self._checkpoint)
        self._checkpoint, self.saved = self._store.get(recipe), self.rows
