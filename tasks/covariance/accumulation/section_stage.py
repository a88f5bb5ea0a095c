"""Moments of one section of a stream of keys, and the share of a worker, which publishes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_tensors, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Store
from factsmith.tasks.corpus.stage import TokenStream
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, Moments, grouped
from factsmith.tasks.covariance.packing import packed, unpacked
from factsmith.tasks.covariance.stage import new_moments
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.engine.workers_stage import Worker
from factsmith.tasks.keys.reader import KeyReader
from factsmith.tasks.keys.stage import KeySource
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Share", "load_section", "section_moments", "section_series", "sections_of", "sum_section"]

_TENSORS = "section.safetensors"
"""Holds ``sum`` (d_k,) and ``outer``, whose upper triangle counts, as ``packed`` gives its transpose; float64."""


def section_series(keys: str, products: str) -> Series:
    """The series of the moments of sections of a series of keys, given by its digest. They last until C0 is made."""
    return Series("section", 1, {"products": products}, {"keys": keys})


def section_moments(
    workspace: Workspace,
    reader: KeyReader,
    decoder: Decoder,
    span: tuple[int, int],
    layers: Sequence[int],
    advance: Callable[[int], None],
) -> dict[int, Moments]:
    """The moments of the keys of one section, by layer, on the device of ``decoder``.

    Raises:
        InputError: as in ``accumulate``.
    """
    found = {layer: new_moments(workspace, decoder.key_width, decoder.device) for layer in layers}
    units = (reader.read(decoder, unit, layers) for unit in reader.units(span))
    for group in grouped(units, ROWS_PER_UPDATE):
        for layer, rows in group.items():
            found[layer].update(rows)
        advance(len(group[layers[0]]))
    return found


def sections_of(store: Store, keys: str, layers: Sequence[int]) -> list[Artifact]:
    """The stored sections of some layers of a series of keys, given by its digest."""
    members = [one for name in ("float64", "float32") for one in store.members(section_series(keys, name))]
    return [one for one in members if one.key["layer"] in layers]


def load_section(artifact: Artifact, moments: Moments) -> Moments:
    """``moments``, which are empty, with the sums that ``sum_section`` has published."""
    tensors = load_tensors(artifact.path / _TENSORS, str(moments.outer.device))
    total = tensors.pop("sum")
    moments.resume(artifact.summary["tokens"], total, unpacked(tensors).T.contiguous())
    moments.products = getattr(torch, artifact.manifest.made["products"])
    return moments


@dataclass(frozen=True)
class Share:
    """A worker's share: a section, and what a ``KeySource`` has beside the model."""

    layers: Sequence[int]
    tokens: TokenStream
    dtype: str
    span: tuple[int, int]


def sum_section(worker: Worker, share: Share, advance: Callable[[int], None]) -> dict[int, Artifact]:
    """Build the moments of a section of each layer in the process of a worker."""
    workspace, store = worker.workspace, worker.workspace.store
    source = KeySource(worker.model, share.layers, share.tokens, share.dtype)
    products = str(new_moments(workspace, 0).products).removeprefix("torch.")
    series = section_series(source.series.digest, products)
    recipes = {layer: series.member(layer=layer, start=share.span[0], stop=share.span[1]) for layer in share.layers}
    absent = [layer for layer, recipe in recipes.items() if store.find(recipe) is None]
    if not absent:
        advance(share.span[1] - share.span[0])
        return {layer: store.get(recipe) for layer, recipe in recipes.items()}
    reader = source.reader(workspace)
    found = section_moments(workspace, reader, worker.model.decoder, share.span, absent, advance)

    def build(draft: Draft, layer: int) -> None:
        moments = found.pop(layer)
        save_tensors(draft.path / _TENSORS, {"sum": moments.sum, **packed(moments.outer.T)})
        draft.summary = {"layer": layer, "tokens": moments.count}
        draft.made = {**workspace.made, **worker.model.made, "products": products}
        draft.read_from(store.get(worker.model.recipe), *share.tokens.shards)

    return store.get_or_build_each(recipes, build)[0]
