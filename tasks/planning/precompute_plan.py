"""The plan of ``precompute``: model, tokens, keys, covariance and factor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from factsmith.artifacts.recipe import Recipe, Series
from factsmith.tasks.corpus.stage import SHARD_TOKENS, token_series
from factsmith.tasks.covariance.accumulation.partial_sums_stage import checkpoint_series, last_checkpoint
from factsmith.tasks.covariance.leverage_stage import leverage_recipes, leverage_series, settled_tokens
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, sections
from factsmith.tasks.covariance.packing import packed_size
from factsmith.tasks.covariance.stage import covariance_series
from factsmith.tasks.keys.stage import absent_shards, key_series, key_spans, shard_rows, whole_shards
from factsmith.tasks.model.cost import ModelCost
from factsmith.tasks.model.model import Fingerprint, Model
from factsmith.tasks.model.stage import cost_of
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation.stage import factor_series

__all__ = ["PrecomputePlanner", "StagePlan", "unstored"]


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage of a run.

    Attributes:
        name: the stage's name.
        missing: how much of ``total`` has to be built; 0 if the stage is cached.
        total: how much the run needs in all.
        unit: what is counted: tokens, layers, facts, ...
        flop: FLOP of the model's passes and of the algebra.
        bytes: bytes to write.
        memory: most bytes held at once.
        algebra: how much of ``flop`` are products and decompositions of keys and covariances, outside of the model.
        makes: digest of what is built; empty if no other run would share it.
    """

    name: str
    missing: int
    total: int
    unit: str
    flop: float = 0.0
    bytes: int = 0
    memory: int = 0
    algebra: float = 0.0
    makes: str = ""


def unstored(run: Run) -> list[str]:
    """What the run does not store, because its device computes it again in less time than it reads it."""
    cost, found = run.preservation.cost, []
    summed = run.preservation.source == "covariance" and run.statistics is None and not run.keeps_keys
    if summed and run.settings.corpus.keep_keys is None:
        found.append("keys")
    if not run.workspace.is_worth_storing(cost.flop, cost.bytes):
        found.append("factors")
    return found


def _recipe(model: Model) -> tuple[Recipe | None, Fingerprint]:
    """The recipe and the fingerprint of a model.

    Weights that are still on the hub have no digest. Nothing in the store can have been made from them.
    """
    recipe = model.recipe if model.checkpoint.is_here else None
    return recipe, model.fingerprint_with(recipe.digest if recipe else "")


class PrecomputePlanner:
    """Plans the stages of ``precompute``. Holds the sizes and fingerprints that all plans share."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.store = run.workspace.store
        self.settings = run.settings
        self.recipe, self.fingerprint = _recipe(run.model)
        self.cost = cost_of(run.workspace, run.model)
        self.counterfactual_cost = cost_of(run.workspace, run.counterfactual) if run.counterfactual else None
        self.layers = run.layers
        self.attended = self.settings.corpus.block_length / 2
        item = 4 if run.model.dtype == "float32" else 2
        self.weights = self.cost.parameters * item
        self.further_weights = self.counterfactual_cost.parameters * item if self.counterfactual_cost else 0
        self.matrix = 8 * self.cost.key_width**2
        self.kind = run.preservation
        self.operator = self.kind.cost

    @cached_property
    def tokens(self) -> Series:
        return token_series(self.run.corpus, self.fingerprint)

    @cached_property
    def keys(self) -> Series:
        return key_series(self.fingerprint, self.tokens.digest, self.settings.corpus.key_dtype)

    def missing(self, recipes: Iterable[Recipe]) -> int:
        return sum(self.store.find(recipe) is None for recipe in recipes)

    def pass_memory(self, *, kept_layers: int = 0) -> int:
        """Bytes of the model, of one pass over as many positions as allowed, and of the keys taken from it.

        Another model that answers for the facts is in memory too, as it was and as it was trained.
        """
        positions = self.run.model.limits.most_tokens
        states = 4 * positions * (6 * self.cost.width + (2 + 2 * kept_layers) * self.cost.key_width)
        return self.weights + 2 * self.further_weights + states

    @cached_property
    def read(self) -> tuple[int, bool]:
        """The number of corpus tokens in the store, and whether the corpus ends there."""
        shards = self.store.members(self.tokens)
        return max((int(one.summary["stop"]) for one in shards), default=0), any(one.summary["last"] for one in shards)

    @cached_property
    def steps(self) -> list[int]:
        """The token counts that C0 may cover, as far as the corpus is known to reach.

        Raises:
            InputError: the corpus is known to be too small for the first of them.
        """
        available, ended = self.read
        budget = self.run.budget
        if steps := budget.steps_within(available) if ended and budget.reads == "corpus" else list(budget.steps):
            return steps
        raise budget.too_small(available, budget.least)

    @cached_property
    def settled(self) -> int | None:
        """The tokens that C0 covers; ``None`` if the number still has to be found."""
        if not self.run.budget.searches:
            return self.steps[-1]
        auto = self.settings.corpus.auto
        series = leverage_series(self.keys.digest, auto.held_out)
        return settled_tokens(self.store, series, self.layers, self.steps, auto.tolerance)

    @cached_property
    def count(self) -> int:
        """The tokens that C0 covers, or the most that it may cover if the number still has to be found."""
        return self.settled or self.steps[-1]

    # ------------------------------------------------------------------ stages

    def model(self) -> StagePlan:
        return self._checked(self.recipe, self.cost)

    def counterfactual_plan(self) -> list[StagePlan]:
        """The plan of checking another model that answers for the facts, if there is one."""
        other, cost = self.run.counterfactual, self.counterfactual_cost
        return [self._checked(_recipe(other)[0], cost)] if other and cost else []

    @property
    def counterfactual_fingerprint(self) -> Fingerprint | None:
        other = self.run.counterfactual
        return _recipe(other)[1] if other else None

    def _checked(self, recipe: Recipe | None, cost: ModelCost) -> StagePlan:
        missing = self.missing([recipe]) if recipe else 1
        memory = 8 * missing * cost.vocabulary * cost.width
        return StagePlan("model", missing, 1, "checkpoint", memory=memory, makes=recipe.digest if recipe else "")

    def corpus(self) -> list[StagePlan]:
        """The plans of tokens, leverage, keys and covariance, as far as the run needs these stages."""
        if self.kind.source == "nothing":
            return []
        if self.run.statistics is not None:
            return [StagePlan("covariance", 0, len(self.layers), "layers")]
        budget, settings, width = self.run.budget, self.settings.corpus, self.cost.key_width
        available, ended = self.read
        wanted = budget.most + budget.held_out
        useful = whole_shards(width, wanted) if self.run.keeps_keys else wanted
        most = available if ended else max(available, useful)
        unread = most - available
        tokens = StagePlan("tokens", unread, useful, "tokens", bytes=4 * unread, makes=self.tokens.digest)

        item = 4 if settings.key_dtype == "float32" else 2
        series = covariance_series(self.keys.digest, self.count)
        lacking = [layer for layer in self.layers if self.store.find(series.member(layer=layer)) is None]
        algebra = float(len(lacking)) * self.count * width**2
        if not self.run.keeps_keys:
            checkpoint = last_checkpoint(self.store, checkpoint_series(self.keys.digest), lacking, self.count)
            left = self.count - (int(checkpoint.key["rows"]) if checkpoint else 0)
            flop = 0.0
            if lacking:
                flop = len(lacking) * left * width**2 + self.cost.key_flop(max(lacking), left, self.attended)
            stops = range(SHARD_TOKENS, self.count + SHARD_TOKENS, SHARD_TOKENS)
            matrices = 1 if len(sections(stops, width, self.count)) == 1 else 2  # of the sections before, and of this
            memory = self.pass_memory(kept_layers=len(lacking)) + (matrices * len(lacking) + 1) * self.matrix
            size, algebra = len(lacking) * packed_size(width), float(len(lacking)) * left * width**2 if lacking else 0.0
            summed = StagePlan(
                "covariance", len(lacking), len(self.layers), "layers", flop, size, memory, algebra, series.digest
            )
            return [tokens, summed]
        # As long as the token count is not known, plan for the last step and its held-out tokens.
        spans = key_spans(width, self.settled or self.count + budget.held_out, most)
        shards = [(span[1] - span[0], absent_shards(self.store, self.keys, self.layers, span)) for span in spans]
        absent = [(rows, layers) for rows, layers in shards if layers]
        if absent and self.settled and not lacking and self.kind.source == "covariance":
            # Whoever has C0 need not make keys.
            found = StagePlan("covariance", 0, len(self.layers), "layers")
            return [tokens, *([self.leverage()] if budget.searches else []), found]
        collected = StagePlan(
            "keys",
            sum(rows for rows, _ in absent),
            sum(rows for rows, _ in shards),
            "tokens" if self.settled else "tokens at most",
            sum(self.cost.key_flop(max(layers), rows, self.attended) for rows, layers in absent),
            sum(item * width * rows * len(layers) for rows, layers in absent),
            self.pass_memory(kept_layers=len(self.layers)),
            makes=self.keys.digest,
        )
        if self.kind.source == "keys":
            return [tokens, collected]
        memory = 3 * self.matrix + (item * shard_rows(width) + 8 * ROWS_PER_UPDATE) * width
        size = len(lacking) * packed_size(width)
        covariance = StagePlan(
            "covariance", len(lacking), len(self.layers), "layers", algebra, size, memory, algebra, series.digest
        )
        return [tokens, *([self.leverage()] if budget.searches else []), collected, covariance]

    def leverage(self) -> StagePlan:
        """The search for the number of tokens. The keys that it needs are counted with the others."""
        held_out = self.run.budget.held_out
        series = leverage_series(self.keys.digest, held_out)
        recipes = [leverage_recipes(series, self.layers, count) for count in self.steps if count <= self.count]
        missing = sum(self.missing(of_step.values()) for of_step in recipes)
        width, layers = self.cost.key_width, len(self.layers)
        flop = missing * (width**3 / 3 + held_out * width**2)
        flop += layers * self.count * width**2 if missing else 0
        unit = "measurements" if self.settled else "measurements at most"
        memory = (layers + 3) * self.matrix
        return StagePlan("leverage", missing, layers * len(recipes), unit, flop, 0, memory, flop, series.digest)

    def factor(self) -> StagePlan:
        missing = self.missing(self.factor_series.member(layer=layer) for layer in self.layers)
        stored = self.run.workspace.is_worth_storing(self.operator.flop, self.operator.bytes)
        flop, size = missing * self.operator.flop, missing * self.operator.bytes * stored
        made, memory = self.factor_series.digest, self.operator.memory
        return StagePlan("factor", missing, len(self.layers), "layers", flop, size, memory, flop, made)

    @cached_property
    def factor_series(self) -> Series:
        return factor_series(self.kind, self.made_from)

    @cached_property
    def made_from(self) -> str | None:
        """The digest of the covariances or keys that the factors are made from; ``None`` if they are from nothing."""
        if self.kind.source == "nothing":
            return None
        if self.run.statistics is not None:
            return self.run.statistics.series.digest
        keys = self.keys
        return (keys if self.kind.source == "keys" else covariance_series(keys.digest, self.count)).digest
