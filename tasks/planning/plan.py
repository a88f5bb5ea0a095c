"""What a run would do before it does anything: which artifacts are there, and what the missing ones would cost.

Estimates, from shapes: FLOP of matrix products, bytes that would be written, and the largest memory a stage holds at
once besides Python and its libraries. Value vectors and evaluation are bounds: facts stop early, prompts share passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from factsmith.artifacts.recipe import Recipe, Series, digest_of
from factsmith.artifacts.rows import RowSeries
from factsmith.tasks.corpus.stage import corpus_too_small, token_series
from factsmith.tasks.covariance.accumulation_stage import checkpoint_series, last_checkpoint
from factsmith.tasks.covariance.leverage_stage import leverage_recipes, leverage_series, settled_tokens
from factsmith.tasks.covariance.stage import ROWS_AT_ONCE, covariance_series
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.sequence_stage import sequence_edits, sequence_series, state_series
from factsmith.tasks.edit.shards import histories, kept_batches
from factsmith.tasks.edit.stage import edit_recipe, edit_series, edit_slack
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.stage import score_series
from factsmith.tasks.evaluation.trajectory_stage import HELD_OUT, perplexity_series
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.stage import context_series
from factsmith.tasks.keys.reader import (
    absent_shards,
    corpus_tokens,
    key_series,
    key_spans,
    shard_rows,
    spare_tokens,
    token_steps,
    useful_tokens,
)
from factsmith.tasks.model.cost import model_cost
from factsmith.tasks.model.stage import model_name, model_recipe
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.directions_stage import direction_layers, direction_series
from factsmith.tasks.preservation.factoring.factorisation import factorisation
from factsmith.tasks.preservation.stage import factor_series
from factsmith.tasks.values.stage import value_series

__all__ = ["StagePlan", "plan"]


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run that has not begun.

    Attributes:
        name: of the stage.
        missing: how much of ``total`` has to be built; 0 if the stage is cached.
        total: of ``unit`` that the run needs.
        unit: what is counted: tokens, layers, facts, ...
        flop: of the model's passes and the algebra.
        bytes: that would be written.
        memory: bytes held at once at most.
    """

    name: str
    missing: int
    total: int
    unit: str
    flop: float = 0.0
    bytes: int = 0
    memory: int = 0


def plan(bench: Bench, *, dataset: bool = True) -> list[StagePlan]:
    """The stages of a run, in order. Nothing is built or written; what is found damaged is set aside, as in a run.

    Args:
        bench: whose input has been checked.
        dataset: whether facts are to be written and scored.

    Raises:
        InputError: the corpus is known to be too small.
    """
    planner = _Planner(bench)
    stages = [planner.model(), *planner.corpus(), planner.factor()]
    return [*stages, *planner.facts()] if dataset else stages


class _Planner:
    """Sizes and names that the plans of the stages share."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        # Nothing can have been made of weights that are still on the hub: no name finds nothing.
        self.recipe = model_recipe(bench) if bench.checkpoint.is_here else None
        self.name = model_name(bench, self.recipe.digest if self.recipe else "")
        self.cost = model_cost(bench.checkpoint)
        self.layers = bench.layers
        self.tokens = token_series(bench, self.name)
        self.keys = key_series(bench, self.name, self.tokens.digest)
        self.attended = bench.settings.corpus.block_length / 2
        self.weights = self.cost.parameters * (4 if bench.settings.model.dtype == "float32" else 2)
        self.matrix = 8 * self.cost.key_width**2
        kind = factorisation(bench)
        self.source = kind.source(bench)
        self.operator = kind.cost(bench, self.cost.key_width)

    def missing(self, recipes: Iterable[Recipe]) -> int:
        return sum(self.bench.store.find(recipe) is None for recipe in recipes)

    def pass_memory(self, *, kept_layers: int = 0) -> int:
        """Bytes of the model and one pass over as many positions as allowed, and of keys that are taken from it."""
        positions = self.bench.settings.runtime.tokens_per_pass
        return self.weights + 4 * positions * (6 * self.cost.width + (2 + 2 * kept_layers) * self.cost.key_width)

    @cached_property
    def read(self) -> tuple[int, bool]:
        """Tokens that the corpus has been read to, and whether it ends there."""
        shards = self.bench.store.members(self.tokens)
        return max((int(one.summary["stop"]) for one in shards), default=0), any(one.summary["last"] for one in shards)

    @cached_property
    def steps(self) -> list[int]:
        """Token counts that C0 may have, as far as the corpus is known to go.

        Raises:
            InputError: it is known to be too small for the first of them.
        """
        there, ended = self.read
        if steps := token_steps(self.bench, there if ended else None):
            return steps
        raise corpus_too_small(self.bench, there, token_steps(self.bench)[0] + spare_tokens(self.bench))

    @cached_property
    def settled(self) -> int | None:
        """Tokens that C0 is the mean of; ``None`` if they are still to be found."""
        if not spare_tokens(self.bench):
            return self.steps[-1]
        return settled_tokens(self.bench, self.keys.digest, self.steps)

    @cached_property
    def count(self) -> int:
        """Tokens that C0 is the mean of; at most, where they are still to be found."""
        return self.settled or self.steps[-1]

    # ------------------------------------------------------------------ stages

    def model(self) -> StagePlan:
        largest = 4 * self.cost.vocabulary * self.cost.width
        missing = self.missing([self.recipe]) if self.recipe else 1
        return StagePlan("model", missing, 1, "checkpoint", memory=2 * missing * largest)

    def corpus(self) -> list[StagePlan]:
        """tokens, keys and covariance, or those of them that the run needs; leverage, where that is to decide."""
        if self.source == "nothing":
            return []
        bench, width = self.bench, self.cost.key_width
        there, ended = self.read
        useful = useful_tokens(bench, corpus_tokens(bench) + spare_tokens(bench))
        most = there if ended else max(there, useful)
        unread = most - there
        tokens = StagePlan("tokens", unread, useful, "tokens", bytes=4 * unread)

        item = 4 if bench.settings.corpus.key_dtype == "float32" else 2
        sums = covariance_series(self.keys.digest, self.count)
        lacking = [layer for layer in self.layers if bench.store.find(sums.member(layer=layer)) is None]
        algebra = float(len(lacking)) * self.count * width**2
        if not bench.settings.corpus.keep_keys:
            sums_so_far = last_checkpoint(bench, checkpoint_series(self.keys.digest), lacking, self.count)
            left = self.count - (int(sums_so_far.key["rows"]) if sums_so_far else 0)
            flop = 0.0
            if lacking:
                flop = len(lacking) * left * width**2 + self.cost.key_flop(max(lacking), left, self.attended)
            memory = self.pass_memory(kept_layers=len(lacking)) + (len(lacking) + 1) * self.matrix
            size = (len(lacking) + 1) * self.matrix if lacking else 0  # and a checkpoint
            return [tokens, StagePlan("covariance", len(lacking), len(self.layers), "layers", flop, size, memory)]
        # What is still to be found takes keys of its last step, and those held out.
        spans = key_spans(width, self.settled or self.count + spare_tokens(bench), most)
        wanted = [(span[1] - span[0], absent_shards(bench, self.keys, span)) for span in spans]
        absent = [(rows, layers) for rows, layers in wanted if layers]
        collected = StagePlan(
            "keys",
            sum(rows for rows, _ in absent),
            sum(rows for rows, _ in wanted),
            "tokens" if self.settled else "tokens at most",
            sum(self.cost.key_flop(max(layers), rows, self.attended) for rows, layers in absent),
            sum(item * width * rows * len(layers) for rows, layers in absent),
            self.pass_memory(kept_layers=len(self.layers)),
        )
        if self.source == "keys":
            return [tokens, collected]
        memory = 3 * self.matrix + (item * shard_rows(width) + 8 * ROWS_AT_ONCE) * width
        size = len(lacking) * self.matrix
        covariance = StagePlan("covariance", len(lacking), len(self.layers), "layers", algebra, size, memory)
        return [tokens, *([self.leverage()] if spare_tokens(bench) else []), collected, covariance]

    def leverage(self) -> StagePlan:
        """How many tokens C0 takes. The keys that this takes are counted with the others."""
        series = leverage_series(self.bench, self.keys.digest)
        recipes = [leverage_recipes(self.bench, series, count) for count in self.steps if count <= self.count]
        missing = sum(self.missing(of_step.values()) for of_step in recipes)
        width, layers = self.cost.key_width, len(self.layers)
        flop = missing * (width**3 / 3 + spare_tokens(self.bench) * width**2)
        flop += layers * self.count * width**2 if missing else 0
        unit = "measurements" if self.settled else "measurements at most"
        return StagePlan("leverage", missing, layers * len(recipes), unit, flop, memory=(layers + 3) * self.matrix)

    def factor(self) -> StagePlan:
        missing = self.missing(self.factor_series.member(layer=layer) for layer in self.layers)
        flop, size = missing * self.operator.flop, missing * self.operator.bytes
        return StagePlan("factor", missing, len(self.layers), "layers", flop, size, self.operator.memory)

    @cached_property
    def factor_series(self) -> Series:
        if self.source == "nothing":
            return factor_series(self.bench, None)
        made_from = self.keys if self.source == "keys" else covariance_series(self.keys.digest, self.count)
        return factor_series(self.bench, made_from.digest)

    def facts(self) -> list[StagePlan]:
        """contexts, values, edit and evaluation."""
        contexts = context_series(self.bench, self.name).member()
        templates = StagePlan("contexts", self.missing([contexts]), 1, "template list", memory=self.weights)
        if self.bench.in_sequence:
            return [templates, *self.in_sequence(contexts.digest)]
        vectors = value_series(self.bench, self.name, contexts.digest)
        edits = [self.edit_recipe(contexts, vectors, batch) for batch in self.bench.batches]
        return [templates, self.values(vectors), self.edits(edits), self.evaluation(edits)]

    def in_sequence(self, contexts: str) -> list[StagePlan]:
        """directions, edit, evaluation and course."""
        bench, width = self.bench, self.cost.key_width
        leading = direction_series(self.factor_series.digest)
        layers = direction_layers(bench)
        absent = self.missing(leading.member(layer=layer) for layer in layers)
        flop, size = 9.0 * absent * width**3, absent * self.matrix
        directions = StagePlan("directions", absent, len(layers), "layers", flop, size, 4 * self.matrix)
        series = sequence_series(bench, self.name, contexts, self.factor_series.digest, leading.digest)
        recipes = sequence_edits(bench, state_series(series.digest))
        wanted = max((number for number, recipe in recipes.items() if bench.store.find(recipe) is None), default=0)
        kept = kept_batches(bench.store, series, histories(bench))
        batches = bench.batches[kept[-1].stop if kept else 0 : wanted]
        left, vectors = sum(map(len, batches)), 8 * len(self.layers) * (2 * width + self.cost.width)
        flop = sum(2 * self._edit_flop(batch) for batch in batches)  # its keys are read again
        flop += sum(self._value_flop(record.request) for batch in batches for record in batch)
        changes = 16 * len(self.layers) * self.cost.projection
        memory = self.pass_memory() + self.operator.bytes + changes + bench.settings.runtime.memory_mb * 2**20
        edit = StagePlan("edit", left, len(bench.requests), "facts", flop, 2 * left * vectors, memory)
        counts = [*itertools.accumulate(map(len, bench.batches))]
        phases = [(recipe.digest, bench.written[0][: counts[number - 1]]) for number, recipe in recipes.items()]
        missing, flop = self._unscored(phases[:-1])
        texts = [perplexity_series(bench, self.name, edit) for edit in (None, *dict(phases))]
        blocks = HELD_OUT * sum(not bench.store.members(text) for text in texts)
        flop += blocks * self._pass_flop(bench.settings.corpus.block_length, bench.settings.corpus.block_length)
        total = sum(len(records) for _, records in phases[:-1]) * len(bench.families) + HELD_OUT * len(texts)
        course = StagePlan("course", missing + blocks, total, "records and blocks", flop, memory=self.pass_memory())
        return [directions, edit, self.evaluation(list(recipes.values())[-1:]), course]

    def edit_recipe(self, contexts: Recipe, vectors: Series, batch: Sequence[Record]) -> Recipe:
        slack = edit_slack(self.bench, len(batch))
        made_from = contexts.digest, vectors.digest, self.factor_series.digest
        return edit_recipe(edit_series(self.bench, self.name, *made_from, slack), batch)

    @cached_property
    def templates(self) -> int:
        """Context templates, the clean one included."""
        given = self.bench.given_contexts
        return len(given) if given else 1 + sum(one.count for one in self.bench.settings.method.context_samples)

    def values(self, series: Series) -> StagePlan:
        facts = {digest_of(one.request.fact): one.request for batch in self.bench.batches for one in batch}
        there = RowSeries(self.bench.store, series).find()
        absent = [request for digest, request in facts.items() if digest not in there]
        flop = sum(map(self._value_flop, absent))
        memory = self.weights + self.bench.settings.runtime.memory_mb * 2**20
        return StagePlan("values", len(absent), len(facts), "facts", flop, 8 * self.cost.width * len(absent), memory)

    def _value_flop(self, request: EditRequest) -> float:
        steps, above = self.bench.settings.method.value.steps, self.cost.blocks - self.layers[-1] - 1
        prompt = encode_prompt(self.bench.tokenizer, request.template, request.subject, request.target_new)
        length = self.templates * len(prompt.inputs)
        behind = self.templates * (len(prompt.inputs) - prompt.lookup) + 1
        reads = self.templates * prompt.continued + 1
        once = self.cost.block_flop(self.cost.blocks, length)
        there_and_back = 2 * steps * (self.cost.block_flop(above, behind) + self.cost.logits_flop(reads))
        return once + there_and_back

    def edits(self, recipes: Sequence[Recipe]) -> StagePlan:
        flop, size, missing = 0.0, 0, 0
        width, rows = self.cost.key_width, self.cost.width
        for recipe, batch in zip(recipes, self.bench.batches, strict=True):
            if self.bench.store.find(recipe):
                continue
            missing += len(batch)
            flop += self._edit_flop(batch)
            size += 8 * len(self.layers) * (width + rows) * len(batch)
        total = sum(map(len, self.bench.batches))
        memory = self.pass_memory() + self.operator.bytes + 8 * len(self.layers) * self.cost.projection
        return StagePlan("edit", missing, total, "facts", flop, size, memory)

    def _edit_flop(self, batch: Sequence[Record]) -> float:
        prompts = [encode_prompt(self.bench.tokenizer, one.request.template, one.request.subject) for one in batch]
        positions = self.templates * sum(prompt.lookup + 1 for prompt in prompts)
        algebra = self.operator.solve_flop + 2 * self.cost.key_width * self.cost.width
        return self.cost.block_flop(self.layers[-1] + 1, positions) + len(self.layers) * algebra * len(batch)

    def evaluation(self, edits: Sequence[Recipe]) -> StagePlan:
        everything = [record for batch in self.bench.batches for record in batch]
        written = [(recipe.digest, batch) for recipe, batch in zip(edits, self.bench.written, strict=True)]
        missing, flop = self._unscored([(None, everything), *written])
        total = 2 * len(everything) * len(self.bench.families)
        return StagePlan("evaluation", missing, total, "records", flop, memory=self.pass_memory())

    def _unscored(self, phases: Sequence[tuple[str | None, Sequence[Record]]]) -> tuple[int, float]:
        """Records that have no scores yet under some weights, an edit's digest or none, and what they would cost."""
        lacking = [
            (family, record)
            for family in self.bench.families
            for edit, records in phases
            for there in [RowSeries(self.bench.store, score_series(self.name, family, edit)).find()]
            for record in records
            if record.digest(family.kinds) not in there
        ]
        return len(lacking), sum(itertools.starmap(self._scoring_flop, lacking))

    def _scoring_flop(self, family: MetricFamily, record: Record) -> float:
        return sum(itertools.starmap(self._pass_flop, family.passes(self.bench.tokenizer, record)))

    def _pass_flop(self, positions: int, read: int) -> float:
        return self.cost.block_flop(self.cost.blocks, positions) + self.cost.logits_flop(read)
