"""Runs on a tiny model, and what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.store import Store
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.evaluation.metrics.counterfact import CounterFact

__all__ = [
    "KINDS",
    "Result",
    "artifacts",
    "contents",
    "count_positions",
    "count_scoring",
    "last_of_each",
    "run_as_functions",
    "states",
    "tiny_arguments",
    "without_stages_in_mlflow",
]


def last_of_each(*arguments: str) -> list[str]:
    """The arguments without those that a later one of the same name replaces. A command refuses them."""
    return [*{argument.partition("=")[0]: argument for argument in arguments}.values()]


def tiny_arguments(folder: Path, *arguments: str) -> list[str]:
    """Arguments of a run on the model in ``folder`` that is small enough to be repeated many times.

    Of arguments with the same name, the last one counts.
    """
    defaults = [
        "model=local", f"model.path={folder}", "corpus=embedded", "dataset=embedded", "corpus.block_length=32",
        "corpus.dynamic_multiplier=20", "method.layers=[0,1]", "method.preservation_weight=1",
        "method.value.steps=4", "method.value.learning_rate=0.2", "method.batch_size=3", "dataset.batches=2",
        "runtime.tokens_per_pass=256",
    ]  # fmt: skip
    given = last_of_each(*arguments)
    names = {argument.partition("=")[0] for argument in given} | _UNREAD.get(_method(arguments), set())
    if "method.preservation=identity" in arguments:
        names |= {"corpus.block_length", "corpus.dynamic_multiplier"}
    if "corpus.tokens" in names:
        names.add("corpus.dynamic_multiplier")
    return [*(argument for argument in defaults if argument.partition("=")[0] not in names), *given]


_BY_THE_EQUATION = {
    "corpus.dynamic_multiplier",
    "method.preservation_weight",
    "method.value.steps",
    "method.value.learning_rate",
}

_UNREAD = {
    "memit-f": {"corpus.dynamic_multiplier"},
    "emmet-f": {"corpus.dynamic_multiplier"},
    "alphaedit": {"method.preservation_weight"},
    "alphaedit-f": {"corpus.dynamic_multiplier", "method.preservation_weight"},
    **dict.fromkeys(("ft", "ft-l", "lora", "ultraedit", "grace", "melo", "serac", "wise"), _BY_THE_EQUATION),
}
"""The defaults above that a method does not read. They would be refused."""


def _method(arguments: Sequence[str]) -> str:
    return next((one.partition("=")[2] for one in reversed(arguments) if one.startswith("method=")), "memit")


def without_stages_in_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log a run to MLflow without its stages, which take longer than a cached run itself."""
    from factsmith.tasks.tracking.tracker import Tracker

    monkeypatch.setattr(Tracker, "stage", lambda *_, **__: None)


def run_as_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flows the plain functions that Prefect would run, and attach figures without drawing them.

    Commands do the same where there is no Prefect server.
    """
    from mlflow import MlflowClient
    from prefect import Flow

    from factsmith.flows.services import dead_flow_runs

    monkeypatch.setattr(MlflowClient, "log_figure", lambda self, run_id, _, name: self.log_text(run_id, "", name))
    monkeypatch.setattr(dead_flow_runs, "crash_dead_flow_runs", lambda home: None)
    monkeypatch.setattr(Flow, "__call__", lambda self, *args, **given: self.fn(*args, **given))


def artifacts(store: Store, kind: str) -> list[Artifact]:
    """The artifacts of a kind."""
    return [store._open(path) for path in store.all_paths() if path.parent.parent.name == kind]


def contents(store: Store) -> dict[str, str]:
    """The content checksum of every artifact, by address."""
    return {one.address: one.manifest.content for path in store.all_paths() for one in [store._open(path)]}


def states(report: Report) -> dict[str, str]:
    """The state of every stage."""
    return {stage.name: stage.state for stage in report.stages}


@dataclass
class Result:
    """The outcome of a command."""

    code: int
    out: str
    err: str


def count_positions(monkeypatch) -> list[int]:
    """Positions that go through block 0, pass by pass."""
    seen: list[int] = []
    run = Decoder.run

    def counted(self, hidden, start, stop, **given):
        if start == 0 < stop:
            seen.append(hidden.shape[:2].numel())
        return run(self, hidden, start, stop, **given)

    monkeypatch.setattr(Decoder, "run", counted)
    return seen


def count_scoring(monkeypatch) -> list[int]:
    """Records of each call that runs prompts."""
    calls: list[int] = []
    score = CounterFact.score

    def counted(self, decoder, records, **given):
        calls.append(len(records))
        return score(self, decoder, records, **given)

    monkeypatch.setattr(CounterFact, "score", counted)
    return calls


KINDS = [
    "model",
    "tokens",
    "keys",
    "covariance",
    "factor",
    "contexts",
    "values",
    "edit",
    "scores",
    "evaluation",
    "drift",
]
"""Kinds of artifacts of a run, in the order in which they are published."""
