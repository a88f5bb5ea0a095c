"""Runs on a tiny model, and what they leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.store import Artifact, Store
from factsmith.flows.reporting.reports import Report
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.evaluation.metrics.counterfact import CounterFact

__all__ = [
    "KILLED_RUN",
    "KINDS",
    "Result",
    "artifacts",
    "contents",
    "count_positions",
    "count_scoring",
    "states",
    "tiny_arguments",
]


def tiny_arguments(folder: Path, *arguments: str) -> list[str]:
    """Arguments of a run on the model in ``folder`` that is small enough to be repeated many times."""
    defaults = [
        "model=local", f"model.path={folder}", "corpus=embedded", "dataset=embedded", "corpus.block_length=32",
        "corpus.dynamic_multiplier=20", "method.layers=[0,1]", "method.preservation_weight=1",
        "method.value.steps=4", "method.value.learning_rate=0.2", "method.batch_size=3", "dataset.batches=2",
        "runtime.tokens_per_pass=256",
    ]  # fmt: skip
    names = {argument.partition("=")[0] for argument in arguments}
    return [*(argument for argument in defaults if argument.partition("=")[0] not in names), *arguments]


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


KINDS = ["model", "tokens", "keys", "covariance", "factor", "contexts", "values", "edit", "scores", "evaluation"]
"""Kinds of artifacts of a run, in the order in which they are published."""

KILLED_RUN = """
import os, signal, sys

from factsmith.tasks.pipeline.environment import prepare_command_line

prepare_command_line()
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.run import run
from factsmith.tasks.keys import stage as keys_stage

kind, number, *arguments = sys.argv[1:]
keys_stage._SHARD_ROWS = 400
publish = Store._publish
seen = 0

def publish_or_die(self, draft, seconds):
    global seen
    if draft.recipe.series.kind == kind:
        seen += 1
        if seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
    publish(self, draft, seconds)

Store._publish = publish_or_die
run(compose(arguments))
"""
"""A program that runs the pipeline and is killed before it publishes the n-th artifact of a kind."""
