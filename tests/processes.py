"""Runs in processes of their own: one that is killed, and one beside another."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
import torch

from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.run import run
from factsmith.tasks.keys import stage as keys_stage
from tests.runs import run_as_functions

__all__ = ["count_what_is_built", "forkserver", "kill_before", "start"]


@cache
def forkserver() -> ForkServerContext:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.processes", "factsmith.flows.sweeps.sweep", "transformers.models.gpt2.modeling_gpt2"]
    )
    return context


def start(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Start ``target`` in a process with the environment of this one."""
    process = forkserver().Process(target=_run, args=(target, dict(os.environ), *arguments))
    process.start()
    return process


def _run(target: Callable[..., None], environment: Mapping[str, str], *arguments: object) -> None:
    gc.freeze()  # What was imported is no garbage.
    os.environ.update(environment)
    torch.set_num_threads(1)
    keys_stage._SHARD_ROWS = 400
    run_as_functions(pytest.MonkeyPatch())
    target(*arguments)


def kill_before(kind: str, number: int, arguments: list[str]) -> None:
    """Run the pipeline and be killed just before the n-th artifact of a kind is published."""
    publish = Store._publish
    seen = 0

    def publish_or_die(self, draft, seconds):
        nonlocal seen
        if draft.recipe.series.kind == kind:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
        publish(self, draft, seconds)

    Store._publish = publish_or_die
    run(compose(arguments))


def count_what_is_built(ready: Path, other_ready: Path, out: Path, arguments: list[str]) -> None:
    """Run the pipeline at the same time as another process, and write what was built here to ``out``."""
    publish = Store._publish
    built = []

    def publish_slowly(self, draft, seconds):
        time.sleep(0.1)  # The other process arrives while this one builds.
        publish(self, draft, seconds)
        built.append(draft.recipe.address)

    Store._publish = publish_slowly
    ready.touch()
    while not other_ready.exists():
        time.sleep(0.01)
    report = run(compose(arguments))
    states = {stage.name: stage.state for stage in report.stages}
    out.write_text(json.dumps({"built": built, "states": states}))
