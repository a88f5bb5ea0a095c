"""Flow ``precompute``: everything that an edit needs and that does not depend on the facts."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from prefect import flow

from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.html.pages import log_run_report
from factsmith.flows.reporting.conditioning import check_report, conditioning, log_choice, log_leverages
from factsmith.flows.reporting.page import open_page, show_abilities, show_scores
from factsmith.flows.reporting.reports import PrecomputeReport, Report, Scored
from factsmith.tasks.corpus.stage import tokens
from factsmith.tasks.covariance.accumulation.stage import accumulate
from factsmith.tasks.covariance.imported_stage import imported
from factsmith.tasks.covariance.leverage_stage import Leverages, leverage
from factsmith.tasks.covariance.spectrum_stage import spectrum
from factsmith.tasks.covariance.stage import Covariances, covariance, covariance_series
from factsmith.tasks.keys.stage import KeySource, has_keys, keys, whole_shards
from factsmith.tasks.model.stage import model
from factsmith.tasks.planning.run import Run
from factsmith.tasks.preservation.stage import Factors, FactorSource, factor

__all__ = ["Prepared", "finish", "precompute", "prepare"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The results of ``prepare``.

    Attributes:
        factors: the factors of the preservation operators; ``None`` for an editor.
        keys: the source of the keys; ``None`` if the method reads none.
        statistics: what the factors are made from.
        tokens: the tokens that these statistics cover.
        leverages: the held-out leverages that determined the token count; ``None`` if it was not searched for.
    """

    factors: Factors | None
    keys: KeySource | None
    statistics: FactorSource
    tokens: int
    leverages: Leverages | None


def prepare(run: Run, *, held_out: int = 0) -> Prepared:
    """Prepare the model for editing: model -> tokens -> keys -> covariance -> factor.

    Stages whose results the method's factors do not need are left out. Keys are stored if ``run.keeps_keys``.

    Args:
        run: the run.
        held_out: further tokens to read, if the corpus has them.
    """
    workspace, settings, kind, budget = run.workspace, run.settings.corpus, run.preservation, run.budget
    model(workspace, run.model)
    if run.editor is not None:
        return Prepared(None, None, None, 0, None)
    if kind.source == "nothing":
        return Prepared(factor(workspace, run.model, run.layers, kind, None, budget), None, None, 0, None)
    if run.statistics is not None:
        c0 = imported(workspace, run.model, run.statistics)
        factors = factor(workspace, run.model, run.layers, kind, c0, budget)
        return Prepared(factors, None, c0, run.statistics.count, None)
    wanted = budget.most + max(held_out, budget.held_out)
    wanted = whole_shards(run.model.key_width, wanted) if run.keeps_keys else wanted
    stream = tokens(workspace, run.model, run.corpus, budget, wanted)
    source = KeySource(run.model, run.layers, stream, settings.key_dtype)
    leverages, count = None, budget.most
    if budget.searches:
        steps = budget.steps_within(stream.count)
        leverages = leverage(workspace, source, settings, steps, settings.auto.tolerance, keeps_keys=run.keeps_keys)
        count = leverages.tokens
    if kind.source == "covariance":
        workspace.tracker.tags({"d_m": f"{count / run.model.key_width:g}"})
    statistics = _statistics(run, source, count)
    factors = factor(workspace, run.model, run.layers, kind, statistics, budget)
    return Prepared(factors, source, statistics, count, leverages)


def _statistics(run: Run, source: KeySource, count: int) -> FactorSource:
    """What the factors are made from: covariances, or the keys themselves."""
    if not run.keeps_keys:
        return accumulate(run.workspace, source, count)
    if run.preservation.source == "keys":
        return keys(run.workspace, source, count)
    store, series = run.workspace.store, covariance_series(source.series.digest, count)
    complete = all(store.find(series.member(layer=layer)) for layer in run.layers)
    if complete and not has_keys(store, source, count):  # Whoever has C0 need not make keys.
        return covariance(run.workspace, run.model, source.without_keys(), count)
    return covariance(run.workspace, run.model, keys(run.workspace, source, count), count)


def finish(run: Run, prepared: Prepared, scored: Scored | None = None) -> Report:
    """The report of a run. Also logs how the token count was found, and shows the scores on the run's pages.

    This is logged after the scores, because MLflow's comparison starts with the metric that was logged first.
    """
    if prepared.leverages:
        log_choice(run, prepared.leverages)
    if scored:
        show_scores(run, scored.scores)
        show_abilities(run, scored.abilities, scored.lm_eval, scored.inference)
    return Report.of(run, scored, tokens=prepared.tokens)


@flow(name="precompute")
def precompute(settings: RunSettings, report: bool = False) -> Report:
    """Prepare a model for editing.

    Args:
        settings: choices, and settings that differ from them.
        report: whether to measure how well each layer's C0 is known.
    """
    with open_page(settings, "precompute", dataset=False) as run:
        if report:
            check_report(run)
        run.model.needs_only(run.layers[-1] + 1)
        held_out = run.settings.corpus.auto.held_out
        prepared = prepare(run, held_out=held_out if report else 0)
        layers, leverages = None, prepared.leverages
        if report and isinstance(prepared.statistics, Covariances):
            if leverages is None and prepared.keys and prepared.tokens + held_out <= prepared.keys.tokens.count:
                leverages = leverage(
                    run.workspace, prepared.keys, run.settings.corpus, [prepared.tokens], keeps_keys=run.keeps_keys
                )
                log_leverages(run, leverages)
            layers = conditioning(run, prepared.tokens, leverages, spectrum(run.workspace, prepared.statistics))
        found = finish(run, prepared)
        found = found if layers is None else PrecomputeReport(**dict(found), layers=layers)
        log_run_report(run, found, "precompute", dataset=False, leverages=leverages)
        return found
