"""Stage ``values``: one value vector a fact, shared by every method that edits at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import load_tensors, save_table, save_tensors
from factsmith.artifacts.recipe import Series, digest_of
from factsmith.artifacts.rows import Row, RowSeries, holders
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.values.checks import check_requests
from factsmith.tasks.values.optimiser import NonFiniteValueError, optimise_values

__all__ = ["Values", "not_finite", "value_series", "values"]

TENSORS = "values.safetensors"
"""Holds ``value`` and ``start``, each (facts, d_model) float32."""

_FACTS_AT_ONCE = 128


@dataclass(frozen=True)
class Values:
    """Value vectors by the digest of their fact.

    Attributes:
        series: of the artifacts that hold them.
        rows: where each is.
    """

    series: Series
    rows: dict[str, Row]

    def read(self, requests: Sequence[EditRequest]) -> tuple[Tensor, list[Artifact]]:
        """(B, d_model) vectors of ``requests``, and the artifacts they were read from."""
        rows = [self.rows[digest_of(request.fact)] for request in requests]
        artifacts = holders(rows)
        tensors = {one.digest: load_tensors(one.path / TENSORS)["value"] for one in artifacts}
        return torch.stack([tensors[row.artifact.digest][row.place] for row in rows]), artifacts


def value_series(bench: Bench, model: ModelName, contexts: str) -> Series:
    """The vectors of all facts that are written at one place, with one set of context templates (its digest)."""
    parameters = {"layer": bench.layers[-1], **bench.settings.method.value.model_dump(), **model.parameters}
    return Series("values", 1, parameters, {**model.inputs, "contexts": contexts})


def not_finite(error: NonFiniteValueError, layer: int, *, kept: int = 0) -> InputError:
    """The value vector of a fact left the numbers; ``kept`` batches of its sequence were written before."""
    remedy = "lower method.value.learning_rate, or set model.dtype=float32"
    if kept:
        remedy += f"; a model that many edits have worn out ends so: dataset.batches={kept} scores what is written"
    return InputError(
        f"The value vector of case {error.request.case_id} is NaN or infinite.",
        got=f"prompt {error.request.prompt!r}, layer {layer}",
        remedy=remedy,
    )


@stage("values")
def values(bench: Bench, model: ModelName, contexts: Contexts) -> Outcome[Values]:
    """Optimise a value vector for every fact of every batch that has none yet.

    Raises:
        InputError: a fact is too long for the model behind a context, or its vector is NaN or infinite; names it.
    """
    layer = bench.layers[-1]
    method = bench.settings.method
    series = value_series(bench, model, contexts.digest)
    requests = {digest_of(request.fact): request for request in bench.requests}
    check_requests(bench.tokenizer, list(requests.values()), contexts.templates, bench.checkpoint.context_length)
    with work("values", len(requests)) as advance:

        def build(draft: Draft, digests: list[str]) -> None:
            facts = [requests[digest] for digest in digests]
            try:
                vectors = optimise_values(
                    bench.decoder,
                    facts,
                    contexts.templates,
                    layer,
                    method.value,
                    memory=bench.settings.runtime.memory_mb * 2**20,
                    advance=advance,
                )
            except NonFiniteValueError as error:
                raise not_finite(error, layer) from None
            save_tensors(
                draft.path / TENSORS,
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
            draft.made = bench.made

        rows, built = RowSeries(bench.store, series).get_or_build(list(requests), build, at_once=_FACTS_AT_ONCE)
    return Outcome(Values(series, rows), series.address, built > 0, {"facts": len(requests), "facts_built": built})
