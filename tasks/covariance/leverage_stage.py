"""Stage ``leverage``: measure how well C0 describes keys that it does not cover, and add tokens until it does."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import save_tensors
from factsmith.artifacts.recipe import Recipe, Series
from factsmith.artifacts.store import Store
from factsmith.tasks.corpus.settings import CorpusSettings
from factsmith.tasks.covariance.cholesky import SingularMatrixError, cholesky
from factsmith.tasks.covariance.leverage import held_out_leverages
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, SectionSums, grouped, sections
from factsmith.tasks.covariance.stage import covariance_series, load_moments, new_moments
from factsmith.tasks.keys.stage import KeySource, KeyStream, collect_keys
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Leverages", "leverage", "leverage_recipes", "leverage_series", "settled_tokens"]

logger = logging.getLogger(__name__)

_TENSORS = "leverages.safetensors"
"""Holds ``leverages`` (held-out keys,) float64; empty if C0 is singular."""


@dataclass(frozen=True)
class Leverages:
    """Held-out leverages of every edited layer.

    Attributes:
        tokens: the first token count of C0 at which every layer's leverage is within the tolerance, or the last count
            that was tried.
        curves: the leverage by layer and token count; infinite if C0 is singular.
    """

    tokens: int
    curves: Mapping[int, Mapping[int, float]]

    def at(self, layer: int) -> float:
        """The leverage of ``layer`` with C0 of ``tokens``."""
        return self.curves[layer][self.tokens]


def leverage_series(keys: str, held_out: int) -> Series:
    """The series of the held-out leverages of a series of keys, given by its digest."""
    return Series("leverage", 1, {"held_out": held_out}, {"keys": keys})


def leverage_recipes(series: Series, layers: Sequence[int], count: int) -> dict[int, Recipe]:
    """The recipes for C0 of the first ``count`` keys at each edited layer."""
    return {layer: series.member(layer=layer, tokens=count) for layer in layers}


def settled_tokens(
    store: Store, series: Series, layers: Sequence[int], steps: Sequence[int], tolerance: float
) -> int | None:
    """The token count that the stage would choose, or ``None`` if the store lacks a leverage that it would measure."""
    for count in steps:
        found = [store.find(recipe) for recipe in leverage_recipes(series, layers, count).values()]
        if not all(found):
            return None
        if max(_value(one) for one in found if one) <= tolerance:
            break
    return count


@stage("leverage")
def leverage(
    workspace: Workspace,
    source: KeySource,
    settings: CorpusSettings,
    steps: Sequence[int],
    tolerance: float = math.inf,
    *,
    keeps_keys: bool,
) -> Outcome[Leverages]:
    """Measure held-out leverage at ``steps`` until that of every edited layer is at most ``tolerance``.

    C0 of a step covers the keys of the step before it and those between the two. The keys after these are held out. The
    next step covers them.

    Args:
        workspace: the run's workspace.
        source: the keys, with tokens for the last step and those held out.
        settings: the corpus settings: how many tokens are held out.
        steps: token counts, ascending.
        tolerance: the leverage to stop at; by default the first step is enough.
        keeps_keys: whether the run stores keys.

    Raises:
        InputError: a key is NaN, infinite, or too large for the data type; names the layer.
    """
    store = workspace.store
    series = leverage_series(source.series.digest, settings.auto.held_out)
    statistics = _Statistics(workspace, source, settings.auto.held_out, keeps_keys=keeps_keys)
    curves: dict[int, dict[int, float]] = {layer: {} for layer in source.layers}
    built = 0
    for count in steps:
        recipes = leverage_recipes(series, source.layers, count)
        absent = [layer for layer, recipe in recipes.items() if store.find(recipe) is None]
        if absent:
            statistics.reach(count, absent)
        with progress("leverage", len(recipes)) as advance:
            for layer, recipe in recipes.items():

                def build(draft: Draft, count: int = count, layer: int = layer) -> None:
                    _measure(draft, statistics, layer, count)
                    draft.made = {**workspace.made, **source.model.made}

                artifact, new = store.get_or_build(recipe, build)
                curves[layer][count] = _value(artifact)
                built += new
                advance(1)
        if all(curve[count] <= tolerance for curve in curves.values()):
            break
    else:
        _warn(source, settings, curves, count)
    found = Leverages(count, curves)
    finite = {f"leverage/layer_{layer}": found.at(layer) for layer in source.layers if math.isfinite(found.at(layer))}
    metrics = {"tokens": count, "dynamic_multiplier": count / source.model.key_width, **finite}
    return Outcome(found, series.address, built > 0, metrics)


def _value(artifact: Artifact) -> float:
    value = artifact.summary["leverage"]
    return math.inf if value is None else float(value)


def _warn(source: KeySource, settings: CorpusSettings, curves: Mapping[int, Mapping[int, float]], count: int) -> None:
    width = source.model.key_width
    whole = count == math.ceil(settings.multipliers[-1] * width)
    ended = "" if whole else f", and the corpus ends after {source.tokens.count:,} tokens"
    logger.warning(
        "With %s tokens (d_m = %.3g) the held-out leverage is still above corpus.auto.tolerance=%g%s: %s\n"
        "  remedy: raise the tolerance, or add larger corpus.auto.steps or more text; the run continues with these "
        "tokens",
        f"{count:,}", count / width, settings.auto.tolerance, ended,
        ", ".join(f"layer {layer} {curve[count]:.3g}" for layer, curve in curves.items()),
    )  # fmt: skip


def _measure(draft: Draft, statistics: _Statistics, layer: int, count: int) -> None:
    draft.read_from(*statistics.made_from(layer, count))
    try:
        factor = cholesky(statistics.covariance(layer, count))
        leverages = held_out_leverages(factor, statistics.held_out(layer, count))
    except SingularMatrixError:
        leverages = torch.zeros(0, dtype=torch.float64)
    save_tensors(draft.path / _TENSORS, {"leverages": leverages})
    value = float(leverages.mean()) if len(leverages) else None
    draft.summary = {"layer": layer, "tokens": count, "held_out": len(leverages), "leverage": value}


class _Statistics:
    """Covariances of the first keys of a stream, and the keys after them.

    A covariance is read from the store if it is there. If not, it is summed up. Every key is read once.

    Args:
        workspace: the run's workspace.
        source: the keys.
        held_out: number of keys after the first ones.
        keeps_keys: whether keys are stored.
    """

    def __init__(self, workspace: Workspace, source: KeySource, held_out: int, *, keeps_keys: bool) -> None:
        self._workspace = workspace
        self._source = source
        self._series = source.series
        self._keeps_keys = keeps_keys
        self._held_out = held_out
        self._reader = source.reader(workspace)
        self._sums: dict[int, SectionSums] = {}
        self._kept: KeyStream | None = None
        self._passing: dict[int, list[Tensor]] = {}

    def reach(self, count: int, layers: Sequence[int]) -> None:
        """Make available the keys that C0 of ``count`` tokens covers, and those held out."""
        stop = count + self._held_out
        if self._keeps_keys:
            self._kept, _ = collect_keys(self._workspace, self._source, stop, self._reader)
        else:
            units = list(self._reader.rows((count, stop), layers))
            self._passing = {layer: [unit[layer] for unit in units] for layer in layers}

    def covariance(self, layer: int, count: int) -> Tensor:
        """C0 (d_k, d_k) float64 of the first ``count`` keys, with the same bits as in stage ``covariance``."""
        device = self._workspace.device
        recipe = covariance_series(self._series.digest, count).member(layer=layer)
        if stored := self._workspace.store.find(recipe):
            return load_moments(stored, device)["covariance"]
        assert self._kept is not None, "without stored keys, stage covariance comes first"
        kept, width = self._kept, self._source.model.key_width
        sums = self._sums.setdefault(layer, SectionSums(partial(new_moments, self._workspace, width)))
        for start, stop in sections(kept.tokens.stops, width, count):
            if stop < sums.count:
                continue
            rows = ({layer: torch.from_numpy(one)} for _, one in kept.rows(layer, stop, max(start, sums.count)))
            for group in grouped(rows, ROWS_PER_UPDATE):
                if stop == count and len(group[layer]) < ROWS_PER_UPDATE:
                    sums = sums.copy()  # ``count`` cuts this group short. The next step has to add it as a whole.
                sums.update(group[layer])
            if stop == count and sums is self._sums[layer]:
                sums = sums.copy()  # And so with this section.
            sums.close()
        assert sums.total is not None
        return sums.total.covariance

    def held_out(self, layer: int, count: int) -> Iterator[Tensor]:
        """The keys after the first ``count``, in blocks (n, d_k)."""
        if self._kept is None:
            yield from self._passing[layer]
            return
        for _, rows in self._kept.rows(layer, count + self._held_out, start=count):
            yield from torch.from_numpy(rows).split(ROWS_PER_UPDATE)

    def made_from(self, layer: int, count: int) -> list[Artifact]:
        """The artifacts that hold all these keys, or that the keys are computed from."""
        stop = count + self._held_out
        if self._kept is None:
            model = self._workspace.store.get(self._source.model.recipe)
            return [model, *self._source.tokens.holding((0, stop))]
        return [shard for shard in self._kept.shards[layer] if shard.key["start"] < stop]
