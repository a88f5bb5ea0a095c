"""Measure how long the stages of a run take on this machine, in small runs that leave nothing but their rates."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch

from factsmith.artifacts.store import Store
from factsmith.flows.edit import write
from factsmith.flows.evaluate import score
from factsmith.flows.precompute import prepare
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.precompute_plan import PrecomputePlanner
from factsmith.tasks.planning.prediction.machine import device_name
from factsmith.tasks.planning.prediction.rates import LOAD, Rate, Rates, fit, save_rates, work_of
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings

__all__ = ["measure"]

_MULTIPLIERS = (2.0, 5.0, 11.0)
"""Tokens of C0 in the three runs, in multiples of d_k."""

_FACTS = (1, 3, 7)
"""Facts in the three runs."""


def measure(settings: Settings, *, dataset: bool) -> tuple[Rates, Path]:
    """Run the stages of ``settings`` on little, three times, and keep their rates in the home.

    A run finds what those before it have made, so that each takes the time of its own share. The first one also pays
    for what is done once in a process, so the other two count, or it if the others do not run a stage. The model is
    loaded before, and its load is measured too.

    Args:
        settings: the settings of the run that is to be predicted, whose input has been checked.
        dataset: whether facts are written and scored.

    Returns:
        The rates, and their file.
    """
    found: list[dict[str, tuple[float, float]]] = []
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measured-", dir=home()) as folder, _logged_to_a_file():
        first = Run(settings, Store(Path(folder)))
        weights = PrecomputePlanner(first).weights
        started = time.perf_counter()
        _ = first.model.decoder
        load = time.perf_counter() - started
        with progress("measure", len(_FACTS)) as advance:
            for multiplier, facts in zip(_MULTIPLIERS, _FACTS, strict=True):
                run = first.variant(_sized(settings, first.model.key_width, multiplier, facts))
                planned = {stage.name: stage for stage in plan(run, dataset=dataset)}
                with run.logged("measure", flow="measure"):
                    prepared = prepare(run)
                    if dataset:
                        score(run, write(run, prepared), figure=False)
                took = {report.name: report.seconds for report in run.workspace.reports}
                built = [name for name, stage in planned.items() if stage.missing and name in took]
                found.append({name: (work_of(planned[name], weights), took[name]) for name in built})
                advance(1)
        rates = Rates(
            device=device_name(first.workspace.device, first.settings.runtime.threads),
            model=first.model.name,
            dtype=first.model.dtype,
            threads=torch.get_num_threads(),
            measured=date.today().isoformat(),
            stages={LOAD: fit([(weights, load)]), **_fitted(found)},
        )
    return rates, save_rates(home(), rates)


def _fitted(found: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, Rate]:
    """The rates of stages, from their work and seconds in each run."""
    first, *others = found
    stages = {name: [run[name] for run in others if name in run] for run in found for name in run}
    return {name: fit(observed or [first[name]]) for name, observed in stages.items()}


def _sized(settings: Settings, key_width: int, multiplier: float, facts: int) -> Settings:
    """The settings with less to do, but no more than they have."""
    corpus, method, dataset = settings.corpus, settings.method, settings.dataset
    if method.reads == "corpus" and corpus.statistics is None:
        most = (corpus.tokens or key_width * corpus.multipliers[-1]) / key_width
        corpus = corpus.model_copy(update={"tokens": None, "dynamic_multiplier": min(multiplier, most)})
    size = facts if method.batch_size == "all" else min(method.batch_size, facts)
    batches = facts // size if dataset.batches is None else min(dataset.batches, facts // size)
    return settings.model_copy(
        update={
            "corpus": corpus,
            "method": method.model_copy(update={"batch_size": size}),
            "dataset": dataset.model_copy(update={"batches": batches}),
        }
    )


@contextmanager
def _logged_to_a_file() -> Iterator[None]:
    """Runs are logged to a file beside their store in this context, which nobody looks at, and not to a server."""
    server = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        if server is not None:
            os.environ["MLFLOW_TRACKING_URI"] = server
