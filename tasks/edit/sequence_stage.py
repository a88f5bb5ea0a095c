"""Stage ``edit`` of a sequence: each batch is written into the weights that the one before it left.

The store keeps the steps of the sequence: each batch's changes, and the keys that are preserved from then on, in shards
of some batches. A run that continues a sequence, after a kill or with more facts, replays the shards to the same bits
and optimises no value vector twice. An edit is the sum of all changes up to a number of batches. It is published for
every number after which the model is scored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.formats import save_table, save_tensors
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.tasks.edit.delta import Delta
from factsmith.tasks.edit.edit import WeightEdit
from factsmith.tasks.edit.edited_layer import RefinedSum
from factsmith.tasks.edit.refiners import sum_refiner
from factsmith.tasks.edit.sequence import FactMeasures, SequenceWriter, Step, Written
from factsmith.tasks.edit.sequence_shards_stage import (
    FACTS,
    MEASURES,
    STEPS,
    ShardRange,
    batch_digests,
    seconds_of,
    stored_batches,
)
from factsmith.tasks.edit.settings import MethodSettings
from factsmith.tasks.edit.solve import CollidingKeysError
from factsmith.tasks.edit.stage import SECONDS_WRITTEN, colliding, part_recipes, save_edit, seconds_written
from factsmith.tasks.facts.batches import FactBatches, fact_digests, ordered_facts
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.pipeline.background import Background
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.pipeline.stage import SECONDS_AN_EDIT, Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.preservation.kind import PreservationKind
from factsmith.tasks.preservation.principal_directions_stage import PrincipalDirections
from factsmith.tasks.preservation.stage import Factors
from factsmith.tasks.values.checks import check_requests
from factsmith.tasks.values.optimiser import NonFiniteValueError
from factsmith.tasks.values.stage import not_finite

__all__ = ["edit_in_sequence", "sequence_edits", "sequence_series", "state_series"]

logger = logging.getLogger(__name__)

_COLLISIONS_SHOWN = 3
"""Most colliding pairs of a batch that are reported."""


def sequence_series(
    model: Fingerprint,
    layers: Sequence[int],
    method: MethodSettings,
    kind: PreservationKind,
    *,
    contexts: str,
    factor: str,
    directions: str,
) -> Series:
    """The series of the shards of sequences, whatever their facts. The inputs are given by their digests."""
    settings = method.sequence
    history: dict[str, Any] = {"history": settings.history}
    if settings.history != "none":
        history["history_keys"] = settings.history_keys
    if settings.history == "compressed":
        history |= {"tau": settings.tau, "energy": settings.energy, "most": settings.most}
    parameters = {
        "layers": list(layers),
        "slack": method.slack,
        "slack_of_one": method.slack_of_one,
        "spread": method.spread,
        "clean_weight": method.clean_weight,
        "read_keys": method.read_keys,
        "value": method.value.recipe,
        **kind.scaling,
        **history,
        **part_recipes(method),
        **model.parameters,
    }
    inputs = {**model.inputs, "contexts": contexts, "factor": factor, "directions": directions}
    return Series("sequence", 3, parameters, inputs)


def state_series(sequence: str) -> Series:
    """The series of the edits that the batches of a sequence add up to. The sequence is given by its digest."""
    return Series("edit", 1, {}, {"sequence": sequence})


def sequence_edits(batches: FactBatches, states: Series) -> dict[int, Recipe]:
    """For each number of batches that is scored, the recipe of the sum of all changes up to there."""
    facts = [fact_digests(batch) for batch in batches.batches]
    return {number: states.member(batches=number, facts=digest_of(facts[:number])) for number in batches.scored or ()}


@stage("edit")
def edit_in_sequence(
    workspace: Workspace,
    model: Model,
    layers: list[int],
    method: MethodSettings,
    batches: FactBatches,
    contexts: Contexts,
    factors: Factors,
    directions: PrincipalDirections,
) -> Outcome[list[Artifact]]:
    """Write all batches, each on top of those before it.

    Args:
        workspace: the run's workspace.
        model: the model.
        layers: the edited layers, ascending.
        method: how facts are written.
        batches: the records of each batch, and after which batches the model is scored.
        contexts: the contexts.
        factors: the factors of the preservation operators.
        directions: the principal directions that changes are measured along.

    Returns:
        The edits after each number of batches that is scored.

    Raises:
        InputError: a fact in a context is too long, its value vector is NaN or infinite, or it has the key of another
            fact of its batch but asks for a different value; names the fact.
    """
    check_requests(model.tokenizer, batches.requests, contexts.templates, model.context_length)
    series = sequence_series(
        model.fingerprint,
        layers,
        method,
        factors.kind,
        contexts=contexts.digest,
        factor=factors.series.digest,
        directions=directions.series.digest,
    )
    store = workspace.store
    states = state_series(series.digest)
    recipes = sequence_edits(batches, states)
    metrics = {"facts": float(len(batches.requests)), "batches": float(len(batches.batches))}
    built = False
    if any(store.find(recipe) is None for recipe in recipes.values()):
        with progress("edit", len(batches.requests)) as advance, store.lock(series.digest):
            # Another process may have built them while this one waited for the lock.
            missing = {number: one for number, one in recipes.items() if store.find(one) is None}
            built = bool(missing)
            if missing:
                inputs = _Inputs(workspace, model, layers, method, batches, contexts, factors, directions, series)
                metrics["facts_written"] = float(_Sequence(inputs, missing, advance).run())
    edits = [store.get(recipe) for recipe in recipes.values()]
    if (seconds := seconds_written(edits[-1])) is not None:
        metrics[SECONDS_AN_EDIT] = seconds / len(batches.requests)
    return Outcome(edits, states.address, built, metrics)


@dataclass(frozen=True)
class _Inputs:
    """The arguments of the stage, and the series of the shards."""

    workspace: Workspace
    model: Model
    layers: list[int]
    method: MethodSettings
    batches: FactBatches
    contexts: Contexts
    factors: Factors
    directions: PrincipalDirections
    series: Series


class _Sequence:
    """Builds the missing edits of a sequence, from the stored shards and from new batches."""

    def __init__(self, inputs: _Inputs, missing: Mapping[int, Recipe], advance: Callable[[int], None]) -> None:
        self._in = inputs
        self._store = inputs.workspace.store
        self._made = {**inputs.workspace.made, **inputs.model.made}
        self._batches = inputs.batches.batches
        self._counts = inputs.batches.counts
        self._missing = missing
        self._seconds: dict[int, float] = {}
        self._advance = advance
        self._digests = batch_digests(inputs.batches)
        self._ranges = stored_batches(self._store, inputs.series, self._digests)

    @property
    def _reached(self) -> int:
        """The number of batches that are stored."""
        return self._ranges[-1].stop if self._ranges else 0

    def run(self) -> int:
        """Publish the missing edits. Returns the number of facts that had to be written."""
        last = max(self._missing)
        refiner = sum_refiner(self._in.method)
        sums = {layer: RefinedSum(layer, partial(self._unedited, layer), refiner) for layer in self._in.layers}
        for number, step in self._stored():
            if number > last:
                break
            for layer, delta in step.deltas.items():
                sums[layer].add(delta)
            if number in self._missing:
                self._publish(number, {layer: one.published() for layer, one in sums.items()})
            self._advance(len(self._batches[number - 1]))
        return self._write(last) if self._reached < last else 0

    def _unedited(self, layer: int) -> torch.Tensor:
        return self._in.model.decoder.weight(layer)

    def _stored(self) -> Iterator[tuple[int, Step]]:
        """The stored batches, each with its number, counted from 1."""
        for shard_range in self._ranges:
            yield from shard_range.steps(self._in.layers, str(self._in.workspace.device))

    def _write(self, last: int) -> int:
        """Write the batches that are not stored, up to number ``last``. A thread stores what has been written."""
        inputs, limits = self._in, self._in.model.limits
        if self._reached:
            logger.info("edit: continuing after %d batches", self._reached)
        facts, pending = 0, dict[int, Written]()
        writer = SequenceWriter(
            inputs.model.decoder,
            inputs.method,
            inputs.layers,
            {layer: inputs.factors.operator(layer) for layer in inputs.layers},
            inputs.contexts.templates,
            directions=inputs.directions.read(),
            most_tokens=limits.most_tokens,
            memory=limits.memory,
        )
        with writer, Background(inputs.workspace.limit_threads) as background:
            writer.replay(step for _, step in self._stored())
            try:
                for number in range(self._reached + 1, last + 1):
                    batch = ordered_facts(self._batches[number - 1])
                    pending[number] = self._write_batch(writer, batch, number)
                    facts += len(batch)
                    if len(pending) == inputs.method.sequence.checkpoint_every or number in self._missing:
                        background.call(self._store_steps, pending)
                        pending = {}
                    if number in self._missing:
                        background.call(self._publish, number, writer.published())
                    self._advance(len(batch))
            except BaseException:  # Keep what has been written, whatever ends the sequence early.
                if pending:
                    background.call(self._store_steps, pending)
                raise
        return facts

    def _write_batch(self, writer: SequenceWriter, batch: Sequence[Record], number: int) -> Written:
        requests = [record.request for record in batch]
        started = time.perf_counter()
        try:
            written = writer.write(requests, self._in.method.slack_for(len(batch)))
        except CollidingKeysError as error:
            raise colliding(requests, error) from None
        except NonFiniteValueError as error:
            raise not_finite(error, max(self._in.layers), kept=number - 1) from None
        self._seconds[number] = time.perf_counter() - started
        for first, second, cosine in written.collisions[:_COLLISIONS_SHOWN]:
            one, other = written.facts[first], written.facts[second]
            logger.warning(
                "cases %d and %d have nearly the same key (cosine %.3f): %r and %r; %.0f %% and %.0f %% of their "
                "residuals were reached",
                *(one.request.case_id, other.request.case_id, cosine, one.request.prompt, other.request.prompt),
                *(100 * one.reached, 100 * other.reached),
            )
        return written

    def _store_steps(self, pending: Mapping[int, Written]) -> None:
        """Publish ``pending``, batches that follow each other, by number, as a shard."""
        start, stop = min(pending) - 1, max(pending)
        tensors: dict[str, torch.Tensor] = {}
        measures: list[dict[str, Any]] = []
        facts: list[dict[str, Any]] = []
        for number, written in pending.items():
            for layer, delta in written.step.deltas.items():
                name = f"{number}.layer.{layer}"
                tensors |= {f"{name}.left": delta.left, f"{name}.right": delta.right}
                tensors |= {f"{name}.key": written.step.keys[layer]} if written.step.keys else {}
            place = {"batch": number, "edits": self._counts[number - 1]}
            measures += [{**place, **asdict(one)} for one in written.layers]
            facts += [{**place, **_row(one)} for one in written.facts]
        recipe = self._in.series.member(start=start, batches=self._digests[start:stop])

        def build(draft: Draft) -> None:
            earlier = [one.shard for one in self._ranges]
            draft.read_from(*self._in.factors.layers.values(), *self._in.directions.layers.values(), *earlier)
            save_tensors(draft.path / STEPS, tensors)
            save_table(draft.path / MEASURES, pa.Table.from_pylist(measures))
            save_table(draft.path / FACTS, pa.Table.from_pylist(facts))
            draft.summary = {"batches": len(pending), "facts": len(facts)}
            draft.made = {**self._made, SECONDS_WRITTEN: round(sum(self._seconds[one] for one in pending), 3)}

        self._ranges.append(ShardRange(self._store.get_or_build(recipe, build)[0], start, stop))

    def _publish(self, number: int, deltas: Mapping[int, Delta]) -> None:
        """Publish the changes of the first ``number`` batches, which add up to ``deltas``."""
        requests = [one.request for batch in self._batches[:number] for one in ordered_facts(batch)]

        def build(draft: Draft) -> None:
            ranges = [one for one in self._ranges if one.start < number]
            draft.read_from(*(one.shard for one in ranges))
            save_edit(draft, WeightEdit(deltas), requests)
            for name in (MEASURES, FACTS):
                save_table(draft.path / name, pa.concat_tables([one.rows(name, number) for one in ranges]))
            draft.made = {**self._made, **seconds_of(ranges, number)}

        self._store.get_or_build(self._missing[number], build)


def _row(one: FactMeasures) -> dict[str, Any]:
    return {
        "case_id": one.request.case_id,
        **one.request.fact,
        "steps": one.steps,
        "loss": one.loss,
        "reached": one.reached,
    }
