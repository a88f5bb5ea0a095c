"""Flow ``run``: precompute, edit, evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prefect import Flow, flow

from factsmith.flows.configuration.parameters import RunSettings
from factsmith.flows.edit import write
from factsmith.flows.evaluate import score
from factsmith.flows.precompute import finish, prepare
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.planning.preflight import open_bench

__all__ = ["run"]

T = TypeVar("T")


@flow(name="run")
def run(settings: RunSettings) -> Report:
    """Get a model ready, write facts into it, and score it before and after.

    Args:
        settings: of the run: choices, and what is to differ from them.
    """
    with open_bench(settings, "run") as bench:
        prepared = _subflow("precompute", lambda: prepare(bench))
        edits = _subflow("edit", lambda: write(bench, prepared))
        scored = _subflow("evaluate", lambda: score(bench, prepared.model, edits))
        return finish(bench, prepared, *scored)


def _subflow(name: str, body: Callable[[], T]) -> T:
    """Run ``body`` as a subflow. It takes no parameters: Prefect would try to serialise the bench and its model."""
    result: T = Flow(body, name=name)()
    return result
