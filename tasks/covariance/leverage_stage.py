"""Stage ``leverage``: does C0 of so many tokens serve keys that it has not seen? If not, go on to more."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.corpus.stage import TokenStream
from factsmith.tasks.covariance.cholesky import SingularMatrixError, cholesky
from factsmith.tasks.covariance.leverage import held_out_leverages
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.covariance.stage import ROWS_AT_ONCE, covariance_series
from factsmith.tasks.covariance.stage import TENSORS as MOMENTS
from factsmith.tasks.keys.reader import KeyReader, key_series, token_steps
from factsmith.tasks.keys.stage import KeyStream, collect_keys
from factsmith.tasks.model.stage import ModelName, model_recipe
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["Leverages", "leverage", "leverage_recipes", "leverage_series", "settled_tokens"]

logger = logging.getLogger(__name__)

TENSORS = "leverages.safetensors"
"""Holds ``leverages`` (held-out keys,) float64; of no key where C0 is singular."""


@dataclass(frozen=True)
class Leverages:
    """Held-out leverages of every edited layer.

    Attributes:
        tokens: of C0, the first count at which all are small enough, or the largest that was tried.
        curves: by layer and tokens; infinite where C0 is singular.
    """

    tokens: int
    curves: Mapping[int, Mapping[int, float]]

    def at(self, layer: int) -> float:
        """Of ``layer``, with C0 of ``tokens``."""
        return self.curves[layer][self.tokens]


def leverage_series(bench: Bench, keys: str) -> Series:
    """Held-out leverages of a series of keys, by its digest."""
    return Series("leverage", 1, {"held_out": bench.settings.corpus.auto.held_out}, {"keys": keys})


def leverage_recipes(bench: Bench, series: Series, count: int) -> dict[int, Recipe]:
    """With C0 of the first ``count`` keys, at each edited layer."""
    return {layer: series.member(layer=layer, tokens=count) for layer in bench.layers}


def settled_tokens(bench: Bench, keys: str, steps: Sequence[int]) -> int | None:
    """The count that the stage would end at; ``None`` if the store lacks a leverage that it would measure."""
    series = leverage_series(bench, keys)
    for count in steps:
        found = [bench.store.find(recipe) for recipe in leverage_recipes(bench, series, count).values()]
        if not all(found):
            return None
        if max(_value(one) for one in found if one) <= bench.settings.corpus.auto.tolerance:
            break
    return count


@stage("leverage")
def leverage(
    bench: Bench, model: ModelName, stream: TokenStream, steps: Sequence[int], tolerance: float = math.inf
) -> Outcome[Leverages]:
    """Measure held-out leverage at ``steps`` until that of every edited layer is at most ``tolerance``.

    C0 of a step is the mean over the keys of the step before and those in between. The keys behind them are held out;
    the next step uses them.

    Args:
        bench: of the run.
        model: whose keys.
        stream: with tokens for the last step, and those held out.
        steps: token counts, ascending.
        tolerance: of the leverage; by default the first step will do.

    Raises:
        InputError: a key is NaN, infinite, or too large for the stored dtype; says in which layer.
    """
    keys = key_series(bench, model, stream.series.digest)
    series = leverage_series(bench, keys.digest)
    source = _Source(bench, stream, keys)
    curves: dict[int, dict[int, float]] = {layer: {} for layer in bench.layers}
    built = 0
    for count in steps:
        recipes = leverage_recipes(bench, series, count)
        absent = [layer for layer, recipe in recipes.items() if bench.store.find(recipe) is None]
        if absent:
            source.reach(count, absent)
        with work("leverage", len(recipes)) as advance:
            for layer, recipe in recipes.items():

                def build(draft: Draft, count: int = count, layer: int = layer) -> None:
                    _measure(draft, source, layer, count)
                    draft.made = bench.made

                artifact, new = bench.store.get_or_build(recipe, build)
                curves[layer][count] = _value(artifact)
                built += new
                advance(1)
        if all(curve[count] <= tolerance for curve in curves.values()):
            break
    else:
        _warn(bench, stream, curves, count)
    found = Leverages(count, curves)
    finite = {f"leverage/layer_{layer}": found.at(layer) for layer in bench.layers if math.isfinite(found.at(layer))}
    metrics = {"tokens": count, "dynamic_multiplier": count / bench.checkpoint.key_width, **finite}
    return Outcome(found, series.address, built > 0, metrics)


def _value(artifact: Artifact) -> float:
    value = artifact.summary["leverage"]
    return math.inf if value is None else float(value)


def _warn(bench: Bench, stream: TokenStream, curves: Mapping[int, Mapping[int, float]], count: int) -> None:
    width = bench.checkpoint.key_width
    ended = "" if count == token_steps(bench)[-1] else f", and the corpus ends at {stream.count:,} tokens"
    logger.warning(
        "With %s tokens (d_m = %.3g) held-out leverage is still above corpus.auto.tolerance=%g%s: %s\n"
        "  remedy: raise the tolerance, add larger corpus.auto.steps, or more text; going on with these tokens",
        f"{count:,}", count / width, bench.settings.corpus.auto.tolerance, ended,
        ", ".join(f"layer {layer} {curve[count]:.3g}" for layer, curve in curves.items()),
    )  # fmt: skip


def _measure(draft: Draft, source: _Source, layer: int, count: int) -> None:
    draft.read_from(*source.made_from(layer, count))
    try:
        leverages = held_out_leverages(cholesky(source.covariance(layer, count)), source.held_out(layer, count))
    except SingularMatrixError:
        leverages = torch.zeros(0, dtype=torch.float64)
    save_tensors(draft.path / TENSORS, {"leverages": leverages})
    value = float(leverages.mean()) if len(leverages) else None
    draft.summary = {"layer": layer, "tokens": count, "held_out": len(leverages), "leverage": value}


class _Source:
    """Covariances of the first keys of a stream, and the keys behind them.

    A covariance that is in the store is taken from there. Others are added up, every key once.

    Args:
        bench: of the run.
        stream: of the corpus.
        keys: the series of its keys.
    """

    def __init__(self, bench: Bench, stream: TokenStream, keys: Series) -> None:
        self._bench = bench
        self._stream = stream
        self._keys = keys
        self._reader = KeyReader(bench, stream)
        self._sums: dict[int, Moments] = {}
        self._kept: KeyStream | None = None
        self._passing: dict[int, list[Tensor]] = {}

    def reach(self, count: int, layers: Sequence[int]) -> None:
        """Have the keys that C0 of ``count`` tokens takes, and those held out."""
        stop = self._stop(count)
        if self._bench.settings.corpus.keep_keys:
            self._kept, _ = collect_keys(self._bench, self._keys, self._stream, stop, self._reader)
        else:
            units = list(self._reader.rows((count, stop), layers))
            self._passing = {layer: [unit[layer] for unit in units] for layer in layers}

    def covariance(self, layer: int, count: int) -> Tensor:
        """C0 (d_k, d_k) float64 of the first ``count`` keys, to the bit that of stage ``covariance``."""
        device = str(self._bench.device)
        if there := self._bench.store.find(covariance_series(self._keys.digest, count).member(layer=layer)):
            return load_tensors(there.path / MOMENTS, device, ["covariance"])["covariance"]
        assert self._kept is not None, "without kept keys stage covariance comes first"
        sums = self._sums.setdefault(layer, Moments(self._bench.checkpoint.key_width, device))
        for shard, rows in self._kept.rows(layer, count, start=sums.count):
            for first in range(0, len(rows), ROWS_AT_ONCE):
                group = torch.from_numpy(rows[first : first + ROWS_AT_ONCE])
                if len(group) < ROWS_AT_ONCE and sums.count + len(group) < shard.key["stop"]:
                    sums = sums.copy()  # cut short by ``count``: the next step adds this group whole
                sums.update(group)
        return sums.covariance.to(device)

    def held_out(self, layer: int, count: int) -> Iterator[Tensor]:
        """The keys behind the first ``count``, in blocks (n, d_k)."""
        if self._kept is None:
            yield from self._passing[layer]
            return
        for _, rows in self._kept.rows(layer, self._stop(count), start=count):
            yield from torch.from_numpy(rows).split(ROWS_AT_ONCE)

    def made_from(self, layer: int, count: int) -> list[Artifact]:
        """What all these keys are kept in, or are made from where they are not."""
        stop = self._stop(count)
        if self._kept is None:
            return [self._bench.store.get(model_recipe(self._bench)), *self._stream.holding((0, stop))]
        return [shard for shard in self._kept.shards[layer] if shard.key["start"] < stop]

    def _stop(self, count: int) -> int:
        return count + self._bench.settings.corpus.auto.held_out
