"""What a run would do: which artifacts exist, and what the missing ones would cost.

The costs are estimates from shapes: FLOP of matrix products, bytes written, and the most memory that a stage holds at
once besides Python and its libraries. Those of value vectors and evaluation are upper bounds, because facts may stop
early and prompts may share passes. That of drift is one if the corpus has less text.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from factsmith.artifacts.recipe import Recipe, Series
from factsmith.artifacts.rows import RowSeries
from factsmith.tasks.abilities.harness_stage import harness_recipe
from factsmith.tasks.abilities.stage import Asked, prediction_series
from factsmith.tasks.corpus.stage import last_within
from factsmith.tasks.decoder.text import EncodedPrompt
from factsmith.tasks.edit.refiners import sum_refiner
from factsmith.tasks.edit.sequence_shards_stage import batch_digests, stored_batches
from factsmith.tasks.edit.sequence_stage import sequence_edits, sequence_series, state_series
from factsmith.tasks.edit.stage import edit_recipe, edit_series
from factsmith.tasks.editors.editor import Editor
from factsmith.tasks.editors.stage import editor_recipes, editor_series
from factsmith.tasks.evaluation.family import MetricFamily
from factsmith.tasks.evaluation.held_out.drift import SCORES_IN_MEMORY
from factsmith.tasks.evaluation.held_out.drift_stage import EDITS_AT_ONCE, drift_series
from factsmith.tasks.evaluation.stage import score_series
from factsmith.tasks.evaluation.trajectory_stage import HELD_OUT, perplexity_series
from factsmith.tasks.facts.batches import fact_digests
from factsmith.tasks.facts.contexts import CLEAN, Context, in_context
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.stage import context_series
from factsmith.tasks.planning.precompute_plan import PrecomputePlanner, StagePlan
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation.principal_directions_stage import MOST, direction_series
from factsmith.tasks.values.stage import value_series

__all__ = ["StagePlan", "plan"]


def plan(run: Run, *, dataset: bool = True) -> list[StagePlan]:
    """The stages of a run, in order. Nothing is built; damaged artifacts are set aside, as in a run.

    Args:
        run: a run whose input has been checked.
        dataset: whether facts are to be written and scored.

    Raises:
        InputError: the corpus is known to be too small.
    """
    planner = _RunPlanner(run)
    stages = [planner.model()]
    if run.editor is None:
        stages += [*planner.corpus(), planner.factor()]
    return [*stages, *planner.facts()] if dataset else stages


class _RunPlanner(PrecomputePlanner):
    """Plans the stages after ``precompute`` too: contexts, values, edit and evaluation."""

    def facts(self) -> list[StagePlan]:
        """The plans of contexts, values, edit and evaluation; for a sequence, those of ``in_sequence``.

        For an editor, those of ``by_editor``.
        """
        if self.run.editor is not None:
            return self.by_editor(self.run.editor)
        contexts, templates = self.context_plan()
        if self.run.batches.in_sequence:
            return [templates, *self.in_sequence(contexts.digest)]
        method = self.settings.method
        vectors = value_series(self.fingerprint, self.layers[-1], method.value, contexts.digest)
        edits = [self.edit_recipe(contexts, vectors, batch) for batch in self.run.batches.batches]
        measured = [*self.drift(edits[: self.settings.drift.edits]), *self.abilities(edits)]
        return [templates, self.values(vectors), self.edits(edits), self.evaluation(edits), *measured]

    def context_plan(self) -> tuple[Recipe, StagePlan]:
        """The recipe and the plan of contexts."""
        run = self.run
        recipe = context_series(self.fingerprint, self.settings.method, run.given_contexts, run.chat_contexts).member()
        missing = self.missing([recipe])
        return recipe, StagePlan("contexts", missing, 1, "template list", memory=self.weights, makes=recipe.digest)

    def by_editor(self, editor: Editor) -> list[StagePlan]:
        """The plans of contexts, edit, evaluation and for a sequence trajectory."""
        run, method = self.run, self.settings.method
        stages, digest = self.counterfactual_plan(), None
        if editor.uses_contexts:
            contexts, templates = self.context_plan()
            stages, digest = [*stages, templates], contexts.digest
        series = editor_series(self.fingerprint, editor, self.layers, method, digest, self.counterfactual_fingerprint)
        edits = editor_recipes(series, run.batches)
        missing = [self.store.find(recipe) is None for recipe in edits]
        batches = run.batches.batches
        if run.batches.scored is None:
            batches = [batch for batch, absent in zip(batches, missing, strict=True) if absent]
        else:
            stored = [n for n, absent in zip(run.batches.scored, missing, strict=True) if not absent]
            batches = batches[max(stored, default=0) :] if any(missing) else []
        facts = [record.request for batch in batches for record in batch]
        flop = sum(3 * editor.steps(method) * self._prompt_flop(one, editor.uses_contexts) for one in facts)
        tokens = max(sum(self._encoded(one.request).continued for one in batch) for batch in run.batches.batches)
        entries = editor.entries(method, self.layers, self.cost, tokens)
        entries += self.counterfactual_cost.parameters if self.counterfactual_cost else 0
        size, memory = 4 * entries * sum(missing), self.pass_memory() + 12 * entries
        edit = StagePlan("edit", len(facts), len(run.batches.requests), "facts", flop, size, memory)
        if run.batches.scored is None:
            measured = [*self.drift(edits[: self.settings.drift.edits]), *self.abilities(edits)]
            return [*stages, edit, self.evaluation(edits), *measured, *self.inference()]
        trajectory = self.trajectory(dict(zip(run.batches.scored, edits, strict=True)))
        measured = [*self.drift(edits), *self.abilities(edits), *self.inference()]
        return [*stages, edit, self.evaluation(edits[-1:]), trajectory, *measured]

    def inference(self) -> list[StagePlan]:
        """The plan of the cost of a memory, which is measured in every run."""
        return [StagePlan("inference", 1, 1, "edit", memory=self.pass_memory())] if self.run.adds_memory else []

    def in_sequence(self, contexts: str) -> list[StagePlan]:
        """The plans of principal directions, edit, evaluation and trajectory."""
        run, store, width = self.run, self.store, self.cost.key_width
        leading = direction_series(self.kind.source, self.made_from, self.count)
        layers = [] if self.kind.source == "nothing" else self.layers
        absent = self.missing(leading.member(layer=layer) for layer in layers)
        rows, made = 2 * self.count if self.kind.source == "keys" else width, leading.digest
        flop, size, memory = 10.0 * absent * MOST * rows * width, absent * 8 * MOST * width, 8 * rows * width
        directions = StagePlan("principal directions", absent, len(layers), "layers", flop, size, memory, flop, made)
        series = sequence_series(
            self.fingerprint,
            self.layers,
            self.settings.method,
            self.kind,
            contexts=contexts,
            factor=self.factor_series.digest,
            directions=leading.digest,
        )
        recipes = sequence_edits(run.batches, state_series(series.digest))
        wanted = max((number for number, recipe in recipes.items() if store.find(recipe) is None), default=0)
        stored = stored_batches(store, series, batch_digests(run.batches))
        batches = run.batches.batches[stored[-1].stop if stored else 0 : wanted]
        left, shards = sum(map(len, batches)), 8 * self._kept_keys(batches) * len(self.layers)
        shards *= 2 * width + self.cost.width
        flop = sum(2 * self._edit_flop(batch) for batch in batches)  # their keys are read again
        flop += sum(self._value_flop(record.request) for batch in batches for record in batch)
        changes = 16 * len(self.layers) * self.cost.projection
        memory = self.pass_memory() + self.operator.bytes + changes + self.run.model.limits.memory
        size = shards + (self._dense_size * self.missing(recipes.values()) or shards)
        edit = StagePlan("edit", left, len(run.batches.requests), "facts", flop, size, memory)
        every = list(recipes.values())
        measured = [*self.drift(every), *self.abilities(every)]
        return [directions, edit, self.evaluation(every[-1:]), self.trajectory(recipes), *measured]

    def trajectory(self, edits: Mapping[int, Recipe]) -> StagePlan:
        """The plan of the trajectory of a sequence. The edits are given by their numbers of batches."""
        run, store = self.run, self.store
        records, counts = run.batches.records, run.batches.counts
        phases = [(recipe.digest, records[: counts[number - 1]]) for number, recipe in edits.items()]
        missing, flop = self._unscored(phases[:-1])
        texts = [perplexity_series(self.fingerprint, run.corpus, edit) for edit in (None, *dict(phases))]
        blocks = HELD_OUT * sum(not store.members(text) for text in texts)
        flop += blocks * self._pass_flop(self.settings.corpus.block_length, self.settings.corpus.block_length)
        total = sum(len(scored) for _, scored in phases[:-1]) * len(run.families) + HELD_OUT * len(texts)
        return StagePlan("trajectory", missing + blocks, total, "records and blocks", flop, memory=self.pass_memory())

    def edit_recipe(self, contexts: Recipe, vectors: Series, batch: Sequence[Record]) -> Recipe:
        series = edit_series(
            self.fingerprint,
            self.layers,
            self.settings.method,
            self.kind,
            facts=len(fact_digests(batch)),
            contexts=contexts.digest,
            values=vectors.digest,
            factor=self.factor_series.digest,
        )
        return edit_recipe(series, batch)

    @cached_property
    def contexts(self) -> Counter[Context]:
        """How often each context occurs, with the clean template in place of all other templates."""
        given = self.run.given_contexts
        templates = len(given) if given else 1 + sum(one.count for one in self.settings.method.context_samples)
        return Counter[Context]({CLEAN: templates}) + Counter[Context](self.run.chat_contexts)

    def values(self, series: Series) -> StagePlan:
        facts = {request.digest: request for request in self.run.batches.requests}
        stored = RowSeries(self.store, series).find()
        absent = [request for digest, request in facts.items() if digest not in stored]
        flop = sum(map(self._value_flop, absent))
        memory = self.weights + self.run.model.limits.memory
        size = 8 * self.cost.width * len(absent)
        return StagePlan("values", len(absent), len(facts), "facts", flop, size, memory, makes=series.digest)

    def _encoded(self, request: EditRequest, context: Context = CLEAN) -> EncodedPrompt:
        """The tokens of a fact's prompt in a context, with its new object."""
        asked = in_context(context, request)
        return asked.encode(self.run.model.tokenizer, request.subject, request.target_new)

    def _prompt_flop(self, request: EditRequest, in_contexts: bool) -> float:
        """FLOP of a pass over a fact's prompts, with its new object: of all of the model that is trained."""
        contexts = self.contexts if in_contexts else Counter[Context]({CLEAN: 1})
        cost, flop = self.counterfactual_cost or self.cost, 0.0
        for prompt, count in ((self._encoded(request, context), count) for context, count in contexts.items()):
            flop += count * (cost.block_flop(cost.blocks, len(prompt.inputs)) + cost.logits_flop(prompt.continued))
        return flop

    def _value_flop(self, request: EditRequest) -> float:
        steps, above = self.settings.method.value.steps, self.cost.blocks - self.layers[-1] - 1
        length, behind, reads = 0, 1, 1
        for context, count in self.contexts.items():
            prompt = self._encoded(request, context)
            length += count * len(prompt.inputs)
            behind += count * (len(prompt.inputs) - prompt.lookup)
            reads += count * prompt.continued
        once = self.cost.block_flop(self.cost.blocks, length)
        step = self.cost.block_flop(above, behind) + self.cost.logits_flop(reads)
        if self.settings.method.value.attention:  # The block itself runs again at the lookup tokens.
            step += self.cost.block_flop(1, 1 + self.contexts.total())
        return once + 2 * steps * step

    def edits(self, recipes: Sequence[Recipe]) -> StagePlan:
        flop, size, missing = 0.0, 0, 0
        factors = 8 * len(self.layers) * (self.cost.key_width + self.cost.width)
        for recipe, batch in zip(recipes, self.run.batches.batches, strict=True):
            if self.store.find(recipe):
                continue
            missing += len(batch)
            flop += self._edit_flop(batch)
            size += self._dense_size or factors * len(batch)
        total = len(self.run.batches.records)
        memory = self.pass_memory() + self.operator.bytes + 8 * len(self.layers) * self.cost.projection
        return StagePlan("edit", missing, total, "facts", flop, size, memory)

    @cached_property
    def _dense_size(self) -> int:
        """Bytes of an edit whose changes a refiner makes dense; 0 for the factors that others have."""
        refiner = sum_refiner(self.settings.method)
        dense = refiner is not None and refiner.is_dense
        return 4 * len(self.layers) * self.cost.projection if dense else 0

    def _kept_keys(self, batches: Sequence[Sequence[Record]]) -> int:
        """The number of keys that a sequence keeps of ``batches``. A wrapper keeps those of every token."""
        requests = [record.request for batch in batches for record in batch]
        if self.settings.method.wrapper is None:
            return len(requests)
        return sum(len(self._encoded(one).tokens) for one in requests)

    def _edit_flop(self, batch: Sequence[Record]) -> float:
        positions = sum(
            count * (in_context(context, one.request).encode(self.run.model.tokenizer, one.request.subject).lookup + 1)
            for one in batch
            for context, count in self.contexts.items()
        )
        algebra = self.operator.solve_flop + 2 * self.cost.key_width * self.cost.width
        return self.cost.block_flop(self.layers[-1] + 1, positions) + len(self.layers) * algebra * len(batch)

    def evaluation(self, edits: Sequence[Recipe]) -> StagePlan:
        batches = self.run.batches
        written = [(recipe.digest, batch) for recipe, batch in zip(edits, batches.written, strict=True)]
        missing, flop = self._unscored([(None, batches.records), *written])
        total = 2 * len(batches.records) * len(self.run.families)
        return StagePlan("evaluation", missing, total, "records", flop, memory=self.pass_memory())

    def drift(self, edits: Sequence[Recipe]) -> list[StagePlan]:
        """The plan of drift, if it is measured."""
        if not self.settings.measures_drift:
            return []
        cost, blocks, budget = self.cost, self.settings.drift.blocks, self.run.budget
        missing = len(edits)
        available, ended = self.read
        if ended or available > max(budget.most, budget.any_method):  # Otherwise the text has not been read yet.
            first = last_within(available, budget.most, budget.any_method)
            stored = RowSeries(self.store, drift_series(self.fingerprint, self.run.corpus, first, blocks)).find()
            missing = sum(edit.digest not in stored for edit in edits)
        positions = blocks * self.settings.corpus.block_length
        shared, passes = self.layers[0], missing + -(-missing // EDITS_AT_ONCE)
        flop = cost.block_flop(shared, positions) * (passes - missing)
        flop += (cost.block_flop(cost.blocks - shared, positions) + cost.logits_flop(positions)) * passes
        memory = self.pass_memory() + SCORES_IN_MEMORY + min(missing, EDITS_AT_ONCE) * self.further_weights
        return [StagePlan("drift", missing, len(edits), "edits", flop, missing * positions * 32, memory)]

    def abilities(self, edits: Sequence[Recipe]) -> list[StagePlan]:
        """The plans of the abilities and of lm-eval, as far as they are measured. What lm-eval costs is not known."""
        asked, harness = self.run.abilities, self.run.lm_eval
        stages = []
        if asked is not None:
            stages.append(self._answers(asked, edits))
        if harness:
            weights = [None, *(recipe.digest for recipe in self.run.harness_edits(edits))]
            recipes = [harness_recipe(self.fingerprint, task, edit) for task in harness for edit in weights]
            stages.append(StagePlan("lm-eval", self.missing(recipes), len(recipes), "evaluations"))
        return stages

    def _answers(self, asked: Asked, edits: Sequence[Recipe]) -> StagePlan:
        weights = [None, *(recipe.digest for recipe in self.run.asked_edits(edits)[0])]
        missing, total, flop = 0, 0, 0.0
        for task, examples, way in asked.parts():
            for edit in weights:
                stored = RowSeries(self.store, prediction_series(self.fingerprint, task, way, edit)).find()
                lacking = [one.prompt for one in examples if one.digest not in stored]
                missing, total = missing + len(lacking), total + len(examples)
                passes = (one for prompt in lacking for one in way.passes(self.run.model.tokenizer, task, prompt))
                flop += sum(itertools.starmap(self._pass_flop, passes))
        return StagePlan("abilities", missing, total, "answers", flop, memory=self.pass_memory())

    def _unscored(self, phases: Sequence[tuple[str | None, Sequence[Record]]]) -> tuple[int, float]:
        """The number and the FLOP of missing scores.

        Args:
            phases: pairs of an edit, given by its digest, or ``None`` for the unedited model, and the records to score.
        """
        lacking = [
            (family, record)
            for family in self.run.families
            for edit, records in phases
            for scores in [score_series(self.fingerprint, self.run.model.tokenizer, family, edit)]
            for stored in [RowSeries(self.store, scores).find()]
            for record in records
            if record.digest(family.kinds) not in stored
        ]
        return len(lacking), sum(itertools.starmap(self._scoring_flop, lacking))

    def _scoring_flop(self, family: MetricFamily, record: Record) -> float:
        return sum(itertools.starmap(self._pass_flop, family.passes(self.run.model.tokenizer, record)))

    def _pass_flop(self, positions: int, read: int) -> float:
        return self.cost.block_flop(self.cost.blocks, positions) + self.cost.logits_flop(read)
