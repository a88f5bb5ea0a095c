"""How well each layer's C0 is known, as reports and MLflow show it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.flows.reporting.figures import leverage_by_multiplier, spectra
from factsmith.flows.reporting.reports import LayerReport
from factsmith.tasks.covariance.leverage_stage import Leverages
from factsmith.tasks.covariance.spectrum import condition_number, effective_rank
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.preservation.factoring.factorisation import factorisation

__all__ = ["check_report", "conditioning", "log_choice", "log_leverages"]

MULTIPLIER = "dynamic_multiplier"
SHARES = {"largest": 0.0, "1%": 0.01, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "smallest": 1.0}
"""Eigenvalues that are told, by their place among all as they descend."""


def check_report(bench: Bench) -> None:
    """
    Raises:
        InputError: the run has no C0 to report on.
    """
    if factorisation(bench).source(bench) != "covariance":
        raise InputError(
            f"method={bench.settings.method.name} makes no C0 to report on.",
            remedy="choose a method that does, such as method=memit, or leave --report out",
        )


def log_leverages(bench: Bench, leverages: Leverages) -> None:
    """Log held-out leverage against the tokens of C0, a curve a layer."""
    # MLflow has no infinity to draw: steps at which C0 was singular are left out.
    finite = {
        f"leverage/layer_{layer}": {tokens: value for tokens, value in curve.items() if math.isfinite(value)}
        for layer, curve in leverages.curves.items()
    }
    bench.tracker.curves(finite)


def log_choice(bench: Bench, leverages: Leverages, *, figure: bool = True) -> None:
    """Log held-out leverages, and the d_m that they led to."""
    width = bench.checkpoint.key_width
    log_leverages(bench, leverages)
    bench.tracker.metrics({MULTIPLIER: leverages.tokens / width})
    bench.tracker.tags({f"corpus.{MULTIPLIER}": f"{leverages.tokens / width:g}"})
    if figure:
        curves = {
            layer: {tokens / width: value for tokens, value in curve.items()}
            for layer, curve in leverages.curves.items()
        }
        tolerance = bench.settings.corpus.auto.tolerance
        bench.tracker.figure(leverage_by_multiplier(curves, tolerance), "leverage.png")


def conditioning(
    bench: Bench, tokens: int, leverages: Leverages | None, eigenvalues: Mapping[int, Tensor]
) -> list[LayerReport]:
    """A report a layer, ascending; logs what the spectra tell, and a figure of them.

    Args:
        bench: of the run.
        tokens: that C0 is the mean of.
        leverages: held-out ones, with C0 of these tokens; ``None`` if the corpus has no keys to hold out.
        eigenvalues: (d_k,) float64 of each layer's C0, descending.
    """
    reports = []
    for layer, values in sorted(eigenvalues.items()):
        rank, condition = effective_rank(values), _finite(condition_number(values))
        bench.tracker.metrics({f"effective_rank/layer_{layer}": rank, f"condition_number/layer_{layer}": condition})
        reports.append(
            LayerReport(
                layer=layer,
                tokens=tokens,
                dynamic_multiplier=tokens / len(values),
                leverage=_finite(leverages.at(layer)) if leverages else None,
                effective_rank=rank,
                condition_number=condition,
                eigenvalues={name: float(values[round(share * (len(values) - 1))]) for name, share in SHARES.items()},
            )
        )
    figure = spectra({layer: values.tolist() for layer, values in sorted(eigenvalues.items())})
    bench.tracker.figure(figure, "spectra.png")
    return reports


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
