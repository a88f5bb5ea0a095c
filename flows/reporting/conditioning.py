"""How well each layer's C0 is known: for reports and MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from factsmith.artifacts.errors import InputError
from factsmith.flows.reporting.figures import leverage_by_multiplier, spectra
from factsmith.flows.reporting.reports import LayerReport
from factsmith.tasks.corpus.settings import AutoSettings
from factsmith.tasks.covariance.leverage_stage import Leverages
from factsmith.tasks.covariance.spectrum import condition_number, effective_rank
from factsmith.tasks.planning.run import Run

__all__ = ["check_report", "conditioning", "log_choice", "log_leverages"]

_MULTIPLIER = "dynamic_multiplier"
_SHARES = {"largest": 0.0, "1%": 0.01, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "smallest": 1.0}
"""The reported eigenvalues, by the share of eigenvalues that are larger."""


def check_report(run: Run) -> None:
    """Check that the run has a C0 to report on.

    Raises:
        InputError: it has none.
    """
    if run.preservation.source != "covariance":
        raise InputError(
            f"method={run.settings.method.name} does not use C0, so there is nothing to report.",
            remedy="choose a method that does, such as method=memit, or leave --report out",
        )
    if run.statistics is not None and run.settings.corpus.auto.held_out != AutoSettings().held_out:
        raise InputError(
            "corpus.auto.held_out would have no effect: held-out leverage of imported statistics is not measured.",
            got=f"corpus.statistics={run.settings.corpus.statistics}",
            remedy="leave it out",
        )


def log_leverages(run: Run, leverages: Leverages) -> None:
    """Log held-out leverage by the number of tokens of C0, one curve per layer."""
    # MLflow cannot draw infinity: steps at which C0 was singular are left out.
    finite = {
        f"leverage/layer_{layer}": {tokens: value for tokens, value in curve.items() if math.isfinite(value)}
        for layer, curve in leverages.curves.items()
    }
    run.workspace.tracker.curves(finite)


def log_choice(run: Run, leverages: Leverages, *, figure: bool = True) -> None:
    """Log held-out leverages and the d_m that they led to."""
    tracker, width = run.workspace.tracker, run.model.key_width
    log_leverages(run, leverages)
    tracker.metrics({_MULTIPLIER: leverages.tokens / width})
    tracker.tags({f"corpus.{_MULTIPLIER}": f"{leverages.tokens / width:g}"})
    if figure:
        curves = {
            layer: {tokens / width: value for tokens, value in curve.items()}
            for layer, curve in leverages.curves.items()
        }
        tracker.figure(leverage_by_multiplier(curves, run.settings.corpus.auto.tolerance), "leverage.png")


def conditioning(
    run: Run, tokens: int, leverages: Leverages | None, eigenvalues: Mapping[int, Tensor]
) -> list[LayerReport]:
    """One report per layer, ascending; logs numbers and a figure of the spectra.

    Args:
        run: the run.
        tokens: number of tokens that C0 covers.
        leverages: held-out leverages with C0 of these tokens; ``None`` if the corpus has no keys left to hold out.
        eigenvalues: (d_k,) float64 of each layer's C0, descending.
    """
    tracker = run.workspace.tracker
    reports = []
    for layer, values in sorted(eigenvalues.items()):
        rank, condition = effective_rank(values), _finite(condition_number(values))
        tracker.metrics({f"effective_rank/layer_{layer}": rank, f"condition_number/layer_{layer}": condition})
        reports.append(
            LayerReport(
                layer=layer,
                tokens=tokens,
                dynamic_multiplier=tokens / len(values),
                leverage=_finite(leverages.at(layer)) if leverages else None,
                effective_rank=rank,
                condition_number=condition,
                eigenvalues={name: float(values[round(share * (len(values) - 1))]) for name, share in _SHARES.items()},
            )
        )
    figure = spectra({layer: values.tolist() for layer, values in sorted(eigenvalues.items())})
    tracker.figure(figure, "spectra.png")
    return reports


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
