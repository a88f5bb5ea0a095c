"""Stage ``values``: one value vector for each fact, shared by every method that edits at the same layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import load_tensors, save_table, save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.rows import Row, RowSeries, holders
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.engine.workers_stage import Worker, workers
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import SECONDS_AN_EDIT, Outcome, stage
from factsmith.tasks.pipeline.turns import on_shares
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.values.checks import check_requests
from factsmith.tasks.values.optimiser import NonFiniteValueError, ValueVector, not_finite, optimise_values
from factsmith.tasks.values.settings import ValueSettings

__all__ = ["Values", "not_finite", "value_series", "values"]

_TENSORS = "values.safetensors"
"""Holds ``value`` and ``start``, each (facts, d_model) float32."""

_FACTS_PER_ARTIFACT = 128


@dataclass(frozen=True)
class Values:
    """Value vectors by the digest of their fact.

    Attributes:
        series: the series of the artifacts that hold them.
        rows: where each vector is.
    """

    series: Series
    rows: dict[str, Row]

    def read(self, requests: Sequence[EditRequest]) -> tuple[Tensor, list[Artifact]]:
        """The (B, d_model) vectors of ``requests``, and the artifacts that they were read from."""
        rows = [self.rows[request.digest] for request in requests]
        artifacts = holders(rows)
        tensors = {one.digest: load_tensors(one.path / _TENSORS)["value"] for one in artifacts}
        return torch.stack([tensors[row.artifact.digest][row.place] for row in rows]), artifacts


def value_series(model: Fingerprint, layer: int, settings: ValueSettings, contexts: str) -> Series:
    """The series of the vectors at one layer, with one set of contexts, given by its digest."""
    parameters = {"layer": layer, **settings.recipe, **model.parameters}
    return Series("values", 1, parameters, {**model.inputs, "contexts": contexts})


@stage("values")
def values(
    workspace: Workspace,
    model: Model,
    layer: int,
    settings: ValueSettings,
    contexts: Contexts,
    requests: Sequence[EditRequest],
) -> Outcome[Values]:
    """Optimise a value vector for every fact that has none yet.

    Args:
        workspace: the run's workspace.
        model: the unedited model.
        layer: the last edited layer.
        settings: the settings of the optimiser.
        contexts: the contexts.
        requests: the facts.

    Raises:
        InputError: a fact in a context is too long for the model, or its vector is NaN or infinite; names the fact.
    """
    series = value_series(model.fingerprint, layer, settings, contexts.digest)
    by_digest = {request.digest: request for request in requests}

    def check(digests: list[str]) -> None:
        missing = [by_digest[digest] for digest in digests]
        check_requests(model.tokenizer, missing, contexts.templates, model.context_length)

    rows_of = RowSeries(workspace.store, series)
    with progress("values", len(by_digest)) as advance:
        shared = _share(workspace, model, layer, settings, contexts, rows_of, by_digest, check, advance)

        def build(draft: Draft, digests: list[str]) -> None:
            facts = [by_digest[digest] for digest in digests]
            _build(draft, workspace, model, layer, settings, contexts, facts, advance)

        rows, built = rows_of.get_or_build(list(by_digest), build, at_once=_FACTS_PER_ARTIFACT, check=check)
    built += shared
    used = [rows[digest].artifact for digest in by_digest]
    seconds = sum(one.manifest.seconds / one.summary["facts"] for one in used)
    metrics = {"facts": len(used), "facts_built": built, SECONDS_AN_EDIT: seconds / len(used)}
    return Outcome(Values(series, rows), series.address, built > 0, metrics)


def _build(
    draft: Draft,
    workspace: Workspace,
    model: Model,
    layer: int,
    settings: ValueSettings,
    contexts: Contexts,
    facts: Sequence[EditRequest],
    advance: Callable[[int], None],
) -> None:
    """Write the vectors of ``facts`` into ``draft``."""

    def optimised(decoder: Decoder, facts: Sequence[EditRequest], advance: Callable[[int], None]) -> list[ValueVector]:
        memory = model.limits.memory
        return optimise_values(decoder, facts, contexts.templates, layer, settings, memory=memory, advance=advance)

    try:
        shares = on_shares(model.replicas, optimised, facts, advance, begin=workspace.limit_threads)
    except NonFiniteValueError as error:
        raise not_finite(error, layer) from None
    vectors = [vector for share in shares for vector in share]
    save_tensors(
        draft.path / _TENSORS,
        {
            "value": torch.stack([vector.value for vector in vectors]),
            "start": torch.stack([vector.start for vector in vectors]),
        },
    )
    rows = [
        {
            **fact.fact,
            "steps": vector.steps,
            "loss": vector.loss,
            "nll": vector.nll,
            "divergence": vector.divergence,
            "change": float((vector.value - vector.start).norm() / vector.start.norm()),
        }
        for fact, vector in zip(facts, vectors, strict=True)
    ]
    save_table(draft.path / "facts.parquet", pa.Table.from_pylist(rows))
    draft.summary = {"facts": len(facts), "layer": layer, "steps": sum(vector.steps for vector in vectors)}
    draft.made = {**workspace.made, **model.made}


@dataclass(frozen=True)
class _Share:
    """A worker's share: some facts, and what their vectors depend on beside the model."""

    series: Series
    layer: int
    settings: ValueSettings
    contexts: Contexts
    facts: Sequence[EditRequest]


def _share(
    workspace: Workspace,
    model: Model,
    layer: int,
    settings: ValueSettings,
    contexts: Contexts,
    rows: RowSeries,
    by_digest: Mapping[str, EditRequest],
    check: Callable[[list[str]], None],
    advance: Callable[[int], None],
) -> int:
    """Have workers, if there are any, build the vectors that are missing. Returns their number."""
    if workspace.runtime.engine == "local" or not rows.missing(list(by_digest)):
        return 0
    with workspace.store.lock(rows.series.digest):
        missing = rows.missing(list(by_digest))
        check(missing)
        pool = workers(workspace, model)
        assert pool is not None
        size = workspace.runtime.ray.task_size or _FACTS_PER_ARTIFACT
        shares = [
            _Share(
                rows.series, layer, settings, contexts, [by_digest[digest] for digest in missing[first : first + size]]
            )
            for first in range(0, len(missing), size)
        ]
        list(pool.each(_build_share, shares, advance))
    return len(missing)


def _build_share(worker: Worker, share: _Share, advance: Callable[[int], None]) -> None:
    def build(draft: Draft) -> None:
        _build(draft, worker.workspace, worker.model, share.layer, share.settings, share.contexts, share.facts, advance)

    recipe = share.series.member(rows=[fact.digest for fact in share.facts])
    worker.workspace.store.get_or_build(recipe, build)
