"""A run that is part of a larger one: a trial of ``tune``, a cell of ``sweep``."""

from __future__ import annotations

from factsmith.flows.edit import write
from factsmith.flows.evaluate import score
from factsmith.flows.precompute import Prepared, prepare
from factsmith.flows.reporting.conditioning import log_choice
from factsmith.flows.reporting.curves import Curves
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["score_trial"]


def score_trial(bench: Bench, name: str, *, flow: str, parent: str) -> tuple[Scores, Curves, Prepared]:
    """What ``score`` tells of the edit that a bench's settings describe, and what that was made with.

    Args:
        bench: of the trial.
        name: of its run in MLflow.
        flow: what it is logged as.
        parent: the run that it is part of.
    """
    with bench.logged(name, flow=flow, parent=parent):
        prepared = prepare(bench)
        scores, course = score(bench, prepared.model, write(bench, prepared), figure=False)
        if prepared.leverages:
            log_choice(bench, prepared.leverages, figure=False)
        return scores, course, prepared
