"""Runs on a tiny model, and what they leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.store import Artifact, Store
from factsmith.flows.reporting.reports import Report

__all__ = ["Result", "artifacts", "contents", "states", "tiny_arguments"]


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
