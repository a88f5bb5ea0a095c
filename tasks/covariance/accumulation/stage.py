"""Stage ``covariance`` without stored keys: each key is added to the moments as the model gives it.

This is for token counts whose keys do not fit on a disk. The artifacts have the same bytes as those that stage
``covariance`` builds from stored keys, because the same values are added in the same groups and sections, on any number
of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from torch import Tensor

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.removal import discard
from factsmith.tasks.covariance.accumulation.partial_sums_stage import PartialSums
from factsmith.tasks.covariance.accumulation.section_stage import Share, section_moments, sections_of, sum_section
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, Moments, grouped, sections
from factsmith.tasks.covariance.stage import (
    Covariances,
    covariance_series,
    save_moments,
)
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.engine.pool import Pool
from factsmith.tasks.engine.workers_stage import workers
from factsmith.tasks.keys.stage import KeySource
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.turns import in_turn
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["accumulate"]


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
            sums = PartialSums(workspace, source, absent, count, made_from)
            advance(sums.rows)
            built = count - sums.rows
            spans = sections(source.tokens.stops, source.model.key_width, count)
            spans = [(max(start, sums.rows), stop) for start, stop in spans if stop > sums.rows]
            # Whoever goes on within a section does so where its moments are.
            pool = workers(workspace, source.model)
            alone = len(spans) if pool is None and len(workspace.devices) == 1 else int(sums.inside)
            _sum_up(workspace, source, sums, spans[:alone], advance)
            if pool is None:
                _sum_up_in_turn(workspace, source, sums, spans[alone:], advance)
            else:
                _share_sections(pool, workspace, source, sums, spans[alone:], advance)

            def build(draft: Draft, layer: int) -> None:
                moments = sums.take(layer)
                draft.read_from(*made_from)
                save_moments(workspace, draft, layer, moments, held)
                draft.made |= source.model.made | ({"workers": pool.about} if pool is not None else {})

            store.get_or_build_each({layer: series.member(layer=layer) for layer in absent}, build)
            for section in sections_of(store, keys.digest, absent):
                discard(store, section)
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
    workspace: Workspace,
    source: KeySource,
    sums: PartialSums,
    spans: Sequence[tuple[int, int]],
    advance: Callable[[int], None],
) -> None:
    # Keys are added up where the model has made them, and never leave the device.
    reader = source.reader(workspace)
    for _, stop in spans:
        rows = reader.rows((sums.rows, stop), sums.layers, device=workspace.device)
        for group in grouped(rows, ROWS_PER_UPDATE):
            sums.save_if_due()
            sums.update(group)
            advance(len(group[sums.layers[0]]))
        sums.close()


def _sum_up_in_turn(
    workspace: Workspace,
    source: KeySource,
    sums: PartialSums,
    spans: Sequence[tuple[int, int]],
    advance: Callable[[int], None],
) -> None:
    """Sum up on several devices, which take the sections in turn."""
    reader = source.reader(workspace)

    def summed(decoder: Decoder, span: tuple[int, int]) -> dict[int, Moments]:
        return section_moments(workspace, reader, decoder, span, sums.layers, advance)

    # In rounds, so that each device holds the moments of one section.
    for place in range(0, len(spans), len(workspace.devices)):
        sums.save_if_due()
        turn = spans[place : place + len(workspace.devices)]
        with closing(in_turn(source.model.replicas, summed, turn, begin=workspace.limit_threads)) as found:
            for section in found:
                sums.add(section)


def _share_sections(
    pool: Pool,
    workspace: Workspace,
    source: KeySource,
    sums: PartialSums,
    spans: Sequence[tuple[int, int]],
    advance: Callable[[int], None],
) -> None:
    """Have workers sum up the sections, which they publish. They are added here, in their order."""
    shares = [
        Share(sums.layers, replace(source.tokens, shards=source.tokens.holding(span)), source.dtype, span)
        for span in spans
    ]
    with closing(pool.each(sum_section, shares, advance)) as published:
        for artifacts in published:
            sums.save_if_due()
            sums.add_shared(artifacts)
