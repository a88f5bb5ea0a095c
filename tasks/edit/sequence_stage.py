"""Stage ``edit`` where batches follow one another into the same weights.

What is kept is the sequence itself: each batch's changes, and the keys that are preserved from then on, in shards of
some batches. Whoever goes on, after a kill or with more facts, replays the shards to the same bits and optimises
nothing twice. An edit of this form is the sum of all changes up to a number of batches; it is made for every number
after which the model is scored, from shards alone if they reach so far.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch

from factsmith.artifacts.formats import save_table, save_tensors
from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.artifacts.store import Artifact, Draft
from factsmith.tasks.edit.delta_sum import DeltaSum
from factsmith.tasks.edit.sequence import FactMeasures, SequenceWriter, Step, Written
from factsmith.tasks.edit.shards import FACTS, MEASURES, STEPS, Stretch, histories, kept_batches
from factsmith.tasks.edit.solve import CollidingKeysError
from factsmith.tasks.edit.stage import colliding, edit_slack, fact_digests, ordered_facts, save_deltas
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.stage import Contexts
from factsmith.tasks.model.stage import ModelName
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.directions_stage import Directions
from factsmith.tasks.preservation.factoring.factorisation import factorisation
from factsmith.tasks.preservation.stage import Factors
from factsmith.tasks.values.checks import check_requests
from factsmith.tasks.values.optimiser import NonFiniteValueError
from factsmith.tasks.values.stage import not_finite

__all__ = ["edit_in_sequence", "sequence_edits", "sequence_series", "state_series"]

logger = logging.getLogger(__name__)

_COLLISIONS_TOLD = 3
"""Pairs of a batch that are named at most."""


def sequence_series(bench: Bench, model: ModelName, contexts: str, factor: str, directions: str) -> Series:
    """Sequences that differ in their facts alone; what they are made from is given by digests."""
    method = bench.settings.method
    kept = method.sequence
    history: dict[str, Any] = {"history": kept.history}
    if kept.history != "none":
        history["history_keys"] = kept.history_keys
    if kept.history == "compressed":
        history |= {"tau": kept.tau, "energy": kept.energy, "most": kept.most}
    parameters = {
        "layers": bench.layers,
        "slack": method.slack,
        "slack_of_one": method.slack_of_one,
        "spread": method.spread,
        "clean_weight": method.clean_weight,
        "read_keys": method.read_keys,
        "value": method.value.model_dump(),
        **factorisation(bench).scaling(bench),
        **history,
        **model.parameters,
    }
    inputs = {**model.inputs, "contexts": contexts, "factor": factor, "directions": directions}
    return Series("sequence", 2, parameters, inputs)


def state_series(sequence: str) -> Series:
    """The edits that the batches of a sequence, by the digest of its series, come to."""
    return Series("edit", 1, {}, {"sequence": sequence})


def sequence_edits(bench: Bench, states: Series) -> dict[int, Recipe]:
    """All changes up to the end of a batch, for each number of batches that is scored."""
    facts = [fact_digests(batch) for batch in bench.batches]
    return {number: states.member(batches=number, facts=digest_of(facts[:number])) for number in bench.scored_batches}


@stage("edit")
def edit_in_sequence(
    bench: Bench, model: ModelName, contexts: Contexts, factors: Factors, directions: Directions
) -> Outcome[list[Artifact]]:
    """Write all batches, each on top of those before; the edits after each number of batches that is to be scored.

    Raises:
        InputError: a fact is too long behind a context, its value vector is NaN or infinite, or it asks for another
            value at the very key of another fact of its batch; names it.
    """
    check_requests(bench.tokenizer, bench.requests, contexts.templates, bench.checkpoint.context_length)
    series = sequence_series(bench, model, contexts.digest, factors.series.digest, directions.series.digest)
    states = state_series(series.digest)
    recipes = sequence_edits(bench, states)
    metrics = {"facts": float(len(bench.requests)), "batches": float(len(bench.batches))}
    built = False
    if any(bench.store.find(recipe) is None for recipe in recipes.values()):
        with work("edit", len(bench.requests)) as advance, bench.store.lock(series.digest):
            # Another process may have built them while this one waited.
            missing = {number: one for number, one in recipes.items() if bench.store.find(one) is None}
            built = bool(missing)
            if missing:
                course = _Course(bench, contexts, factors, directions, series, missing, advance)
                metrics |= course.go_on()
    edits = [bench.store.get(recipe) for recipe in recipes.values()]
    return Outcome(edits, states.address, built, metrics)


class _Course:
    """A sequence on its way from the shards that there are to the edits that there should be."""

    def __init__(
        self,
        bench: Bench,
        contexts: Contexts,
        factors: Factors,
        directions: Directions,
        series: Series,
        missing: Mapping[int, Recipe],
        advance: Callable[[int], None],
    ) -> None:
        self._bench = bench
        self._contexts = contexts
        self._factors = factors
        self._directions = directions
        self._series = series
        self._missing = missing
        self._advance = advance
        self._histories = histories(bench)
        self._stretches = kept_batches(bench.store, series, self._histories)

    @property
    def _reached(self) -> int:
        """Batches that are kept."""
        return self._stretches[-1].stop if self._stretches else 0

    def go_on(self) -> dict[str, float]:
        """Publish the missing edits; what it took."""
        last = max(self._missing)
        sums = {layer: DeltaSum() for layer in self._bench.layers}
        for number, step in self._kept():
            if number > last:
                break
            for layer, delta in step.deltas.items():
                sums[layer].add(delta)
            if number in self._missing:
                self._publish(number, sums)
            self._advance(len(self._bench.batches[number - 1]))
        return self._write(last) if self._reached < last else {"facts_written": 0.0}

    def _kept(self) -> Iterator[tuple[int, Step]]:
        """The batches that are kept, each with its number, counted from 1."""
        for stretch in self._stretches:
            yield from stretch.steps(self._bench.layers, str(self._bench.device))

    def _write(self, last: int) -> dict[str, float]:
        """Write the batches that are not kept, up to the one that ends with number ``last``."""
        bench, method = self._bench, self._bench.settings.method
        if self._reached:
            logger.info("edit: going on after %d batches", self._reached)
        facts, pending = 0, list[Written]()
        with SequenceWriter(
            bench.decoder,
            method,
            bench.layers,
            {layer: self._factors.operator(layer) for layer in bench.layers},
            self._contexts.templates,
            directions=self._directions.read(),
            most_tokens=bench.settings.runtime.tokens_per_pass,
            memory=bench.settings.runtime.memory_mb * 2**20,
        ) as writer:
            writer.replay(step for _, step in self._kept())
            began = time.perf_counter()
            for number in range(self._reached + 1, last + 1):
                batch = ordered_facts(bench.batches[number - 1])
                try:
                    pending.append(self._write_batch(writer, batch, number))
                except BaseException:  # whatever ends a sequence early, what it has written is kept
                    if pending:
                        self._keep(number - 1, pending)
                    raise
                facts += len(batch)
                self._advance(len(batch))
                if len(pending) == method.sequence.checkpoint_every or number in self._missing:
                    self._keep(number, pending)
                    pending = []
                if number in self._missing:
                    self._publish(number, writer.sums)
        seconds = time.perf_counter() - began
        return {"facts_written": float(facts), "seconds_an_edit": seconds / facts}

    def _write_batch(self, writer: SequenceWriter, batch: Sequence[Record], number: int) -> Written:
        requests = [record.request for record in batch]
        try:
            written = writer.write(requests, edit_slack(self._bench, len(batch)))
        except CollidingKeysError as error:
            raise colliding(requests, error) from None
        except NonFiniteValueError as error:
            raise not_finite(error, max(self._bench.layers), kept=number - 1) from None
        for first, second, cosine in written.collisions[:_COLLISIONS_TOLD]:
            one, other = written.facts[first], written.facts[second]
            logger.warning(
                "cases %d and %d have nearly the same key (cosine %.3f): %r and %r; of their residuals %.0f %% and "
                "%.0f %% were reached",
                *(one.request.case_id, other.request.case_id, cosine, one.request.prompt, other.request.prompt),
                *(100 * one.reached, 100 * other.reached),
            )
        return written

    def _keep(self, stop: int, pending: Sequence[Written]) -> None:
        """Publish ``pending``, the batches up to number ``stop``, as a shard."""
        start = stop - len(pending)
        counts = list(itertools.accumulate(map(len, self._bench.batches)))
        tensors: dict[str, torch.Tensor] = {}
        measures: list[dict[str, Any]] = []
        facts: list[dict[str, Any]] = []
        for number, written in enumerate(pending, start + 1):
            for layer, delta in written.step.deltas.items():
                name = f"{number}.layer.{layer}"
                tensors |= {f"{name}.left": delta.left, f"{name}.right": delta.right}
                tensors |= {f"{name}.key": written.step.keys[layer]} if written.step.keys else {}
            place = {"batch": number, "edits": counts[number - 1]}
            measures += [{**place, **asdict(one)} for one in written.layers]
            facts += [{**place, **_row(one)} for one in written.facts]
        recipe = self._series.member(start=start, batches=self._histories[start:stop])

        def build(draft: Draft) -> None:
            earlier = [stretch.shard for stretch in self._stretches]
            draft.read_from(*self._factors.layers.values(), *self._directions.layers.values(), *earlier)
            save_tensors(draft.path / STEPS, tensors)
            save_table(draft.path / MEASURES, pa.Table.from_pylist(measures))
            save_table(draft.path / FACTS, pa.Table.from_pylist(facts))
            draft.summary = {"batches": len(pending), "facts": len(facts)}
            draft.made = self._bench.made

        self._stretches.append(Stretch(self._bench.store.get_or_build(recipe, build)[0], start, stop))

    def _publish(self, number: int, sums: Mapping[int, DeltaSum]) -> None:
        """Publish the edit that the first ``number`` batches come to."""
        requests = [one.request for batch in self._bench.batches[:number] for one in ordered_facts(batch)]

        def build(draft: Draft) -> None:
            stretches = [stretch for stretch in self._stretches if stretch.start < number]
            draft.read_from(*(stretch.shard for stretch in stretches))
            save_deltas(draft, {layer: one.delta() for layer, one in sums.items()}, requests)
            for name in (MEASURES, FACTS):
                parts = [stretch.rows(name, number) for stretch in stretches]
                save_table(draft.path / name, pa.concat_tables(parts))
            draft.made = self._bench.made

        self._bench.store.get_or_build(self._missing[number], build)


def _row(one: FactMeasures) -> dict[str, Any]:
    return {
        "case_id": one.request.case_id,
        **one.request.fact,
        "steps": one.steps,
        "loss": one.loss,
        "reached": one.reached,
    }
