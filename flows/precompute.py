"""Flow ``precompute``: everything an edit needs that does not depend on the facts."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from prefect import flow

from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.reporting.conditioning import check_report, conditioning, log_choice, log_leverages
from factsmith.flows.reporting.curves import Curves
from factsmith.flows.reporting.reports import PreparationReport, Report
from factsmith.tasks.corpus.stage import TokenStream, tokens
from factsmith.tasks.covariance.accumulation_stage import accumulate
from factsmith.tasks.covariance.leverage_stage import Leverages, leverage
from factsmith.tasks.covariance.spectrum_stage import spectrum
from factsmith.tasks.covariance.stage import Covariances, covariance
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.keys.reader import corpus_tokens, spare_tokens, token_steps, useful_tokens
from factsmith.tasks.keys.stage import keys
from factsmith.tasks.model.stage import ModelName, model
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.preflight import open_bench
from factsmith.tasks.preservation.factoring.factorisation import Statistics, factorisation
from factsmith.tasks.preservation.stage import Factors, factor

__all__ = ["Prepared", "finish", "precompute", "prepare"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` leaves to the edit, and to whoever wants to know how good it is.

    Attributes:
        model: names of the checkpoint.
        factors: of what must be preserved.
        stream: of the corpus, if it was read.
        statistics: what the factors are made from.
        tokens: that they are the statistics of.
        leverages: held-out ones, where the token count was found by them.
    """

    model: ModelName
    factors: Factors
    stream: TokenStream | None
    statistics: Statistics
    tokens: int
    leverages: Leverages | None


def prepare(bench: Bench, *, spare: int = 0) -> Prepared:
    """model -> tokens -> keys -> covariance -> factor.

    Without the keys if they are not to be kept, and without what the method's factors are not made from.

    Args:
        bench: of the run.
        spare: tokens behind those of C0 to read, if the corpus has them.
    """
    if bench.settings.corpus.is_auto and not bench.settings.finds_tokens:
        logger.warning("corpus.dynamic_multiplier=auto finds nothing: %s keeps no C0", bench.settings.method.name)
    name = model(bench)
    source = factorisation(bench).source(bench)
    if source == "nothing":
        return Prepared(name, factor(bench, None), None, None, 0, None)
    least = token_steps(bench)[0] + spare_tokens(bench)
    most = corpus_tokens(bench) + max(spare, spare_tokens(bench))
    stream = tokens(bench, name, least, useful_tokens(bench, most))
    leverages, wanted = None, corpus_tokens(bench)
    if spare_tokens(bench):
        tolerance = bench.settings.corpus.auto.tolerance
        leverages = leverage(bench, name, stream, token_steps(bench, stream.count), tolerance)
        wanted = leverages.tokens
    statistics: Statistics
    if not bench.settings.corpus.keep_keys:
        statistics = accumulate(bench, name, stream, wanted)
    else:
        statistics = keys(bench, name, stream, wanted)
        if source == "covariance":
            statistics = covariance(bench, statistics, wanted)
    return Prepared(name, factor(bench, statistics), stream, statistics, wanted, leverages)


def finish(bench: Bench, prepared: Prepared, scores: Scores | None = None, course: Curves | None = None) -> Report:
    """What a run tells; and how its token count was found, logged last: MLflow's comparison starts with the scores."""
    if prepared.leverages:
        log_choice(bench, prepared.leverages)
    return Report.of(bench, scores, course, tokens=prepared.tokens)


@flow(name="precompute")
def precompute(settings: RunSettings, report: bool = False) -> Report:
    """Get a model ready to be edited.

    Args:
        settings: of the run: choices, and what is to differ from them.
        report: whether to measure how well each layer's C0 is known.
    """
    with open_bench(settings, "precompute", dataset=False) as bench:
        if report:
            check_report(bench)
        held_out = bench.settings.corpus.auto.held_out
        prepared = prepare(bench, spare=held_out if report else 0)
        layers = None
        if report and prepared.stream and isinstance(prepared.statistics, Covariances):
            leverages = prepared.leverages
            if leverages is None and prepared.tokens + held_out <= prepared.stream.count:
                leverages = leverage(bench, prepared.model, prepared.stream, [prepared.tokens])
                log_leverages(bench, leverages)
            layers = conditioning(bench, prepared.tokens, leverages, spectrum(bench, prepared.statistics))
        found = finish(bench, prepared)
        return found if layers is None else PreparationReport(**dict(found), layers=layers)
