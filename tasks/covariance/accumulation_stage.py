"""Stage ``covariance`` without kept keys: each is added up as the model gives it, and forgotten.

For token counts whose keys no disk would hold. What it publishes is, to the byte, what stage ``covariance`` makes of
kept keys: the same values, added in the same groups.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.removal import discard
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.corpus.stage import TokenStream
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.covariance.stage import ROWS_AT_ONCE, Covariances, covariance_series, save_moments
from factsmith.tasks.keys.reader import KeyReader, key_series, key_spans
from factsmith.tasks.model.stage import ModelName, model_recipe
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["accumulate", "checkpoint_series", "last_checkpoint"]

logger = logging.getLogger(__name__)

TENSORS = "sums.safetensors"
"""Holds ``layer.N.outer`` (d_k, d_k), one half of it, and ``layer.N.sum`` (d_k,), float64."""


def checkpoint_series(keys: str) -> Series:
    """The sums so far of a series of keys, by its digest."""
    return Series("accumulation", 1, {}, {"keys": keys})


def last_checkpoint(bench: Bench, series: Series, layers: Sequence[int], count: int) -> Artifact | None:
    """The checkpoint that ``count`` keys of ``layers`` can go on from with the least left to do.

    One of more layers will do: some may have been finished since.
    """
    usable = [
        one for one in bench.store.members(series) if set(layers) <= set(one.key["layers"]) and one.key["rows"] <= count
    ]
    return max(usable, key=lambda one: int(one.key["rows"]), default=None)


@stage("covariance")
def accumulate(bench: Bench, model: ModelName, stream: TokenStream, count: int) -> Outcome[Covariances]:
    """Moments of the first ``count`` keys of every edited layer that lacks them, from one pass over the corpus.

    The sums so far are published every ``runtime.checkpoint_seconds``, in the place of those before; a killed process,
    and a larger count, go on from there.

    Raises:
        InputError: a key is NaN, infinite, or too large for ``corpus.key_dtype``; says in which layer.
    """
    keys = key_series(bench, model, stream.series.digest)
    series = covariance_series(keys.digest, count)
    built = 0
    with work("covariance", count) as advance, bench.store.lock(keys.digest):
        absent = [layer for layer in bench.layers if bench.store.find(series.member(layer=layer)) is None]
        if absent:
            sources = [bench.store.get(model_recipe(bench)), *stream.holding((0, count))]
            sums = _Sums(bench, checkpoint_series(keys.digest), absent, count, sources)
            advance(sums.rows)
            built = count - sums.rows
            _add_up(bench, stream, sums, count, advance)
            for layer in absent:
                moments = sums.moments.pop(layer)

                def build(draft: Draft, layer: int = layer, moments: Moments = moments) -> None:
                    draft.read_from(*sources)
                    save_moments(bench, draft, layer, moments)

                bench.store.get_or_build(series.member(layer=layer), build)
        else:
            advance(count)
    found = {layer: bench.store.get(series.member(layer=layer)) for layer in bench.layers}
    return Outcome(
        Covariances(series, found),
        series.address,
        bool(absent),
        {"tokens": count, "tokens_built": built, "bytes": sum(one.manifest.size for one in found.values())},
    )


def _add_up(bench: Bench, stream: TokenStream, sums: _Sums, count: int, advance: Callable[[int], None]) -> None:
    reader = KeyReader(bench, stream)
    layers = list(sums.moments)
    saved = time.monotonic()
    for start, stop in key_spans(bench.checkpoint.key_width, count, count):
        if stop <= sums.rows:
            continue
        if time.monotonic() - saved >= bench.settings.runtime.checkpoint_seconds and start > sums.saved:
            sums.save()
            saved = time.monotonic()
        for group in _grouped(reader.rows((start, stop), layers), ROWS_AT_ONCE):
            for layer, rows in group.items():
                sums.moments[layer].update(rows)
        advance(stop - start)
        sums.rows = stop


def _grouped(units: Iterable[dict[int, Tensor]], size: int) -> Iterator[dict[int, Tensor]]:
    """The rows of ``units`` in groups of ``size``, the last one smaller."""
    pending: dict[int, Tensor] = {}
    for unit in units:
        pending = {layer: torch.cat([pending[layer], rows]) for layer, rows in unit.items()} if pending else unit
        count = len(next(iter(pending.values())))
        for first in range(0, count - size + 1, size):
            yield {layer: rows[first : first + size] for layer, rows in pending.items()}
        pending = {layer: rows[count - count % size :] for layer, rows in pending.items()} if count % size else {}
    if pending:
        yield pending


class _Sums:
    """Moments of some layers over the first rows of the stream.

    Args:
        bench: of the run.
        series: of the checkpoints.
        layers: that are added up together.
        count: rows that are wanted; a checkpoint with more of them is of no use.
        sources: artifacts that the keys are made from.

    Attributes:
        moments: of each layer.
        rows: that they hold.
        saved: rows of the last checkpoint.
    """

    def __init__(
        self, bench: Bench, series: Series, layers: Sequence[int], count: int, sources: Sequence[Artifact]
    ) -> None:
        self._store = bench.store
        self._made = bench.made
        self._series = series
        self._sources = sources
        self._checkpoint = last_checkpoint(bench, series, layers, count)
        self.rows = self.saved = int(self._checkpoint.key["rows"]) if self._checkpoint else 0
        self.moments = {layer: Moments(bench.checkpoint.key_width, bench.device) for layer in layers}
        if self._checkpoint:
            logger.info("covariance: going on after %s tokens", f"{self.rows:,}")
            names = [f"layer.{layer}.{part}" for layer in layers for part in ("sum", "outer")]
            tensors = load_tensors(self._checkpoint.path / TENSORS, str(bench.device), names)
            for layer, moments in self.moments.items():
                moments.resume(self.rows, tensors.pop(f"layer.{layer}.sum"), tensors.pop(f"layer.{layer}.outer"))

    def save(self) -> None:
        """Publish a checkpoint; the one before goes."""
        recipe = self._series.member(layers=list(self.moments), rows=self.rows)
        with self._store.draft(recipe) as draft:
            tensors: dict[str, Tensor] = {}
            for layer, moments in self.moments.items():
                tensors |= {f"layer.{layer}.sum": moments.sum, f"layer.{layer}.outer": moments.outer}
            save_tensors(draft.path / TENSORS, tensors)
            draft.summary = {"layers": list(self.moments), "tokens": self.rows}
            draft.made = self._made
            draft.read_from(*self._sources)
        if self._checkpoint and self._checkpoint.key["layers"] == list(self.moments):
            discard(self._store, self._checkpoint)
        self._checkpoint, self.saved = self._store.get(recipe), self.rows
