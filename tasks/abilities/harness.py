"""Tasks of lm-eval, the LM Evaluation Harness, on a model in memory.

lm-eval is an optional package. Its tasks, prompts and metrics are its own; nothing is changed, so that numbers agree
with those of its command line on the exported model. It asks the model through transformers and not through our
decoder, because a task may ask anything.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import logging
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factsmith.artifacts.errors import InputError, closest, first_line
from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.abilities.settings import LmEvalSettings
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.quiet import quiet_transformers

__all__ = ["HarnessTask", "load_harness", "run_harness"]

_MOST_AT_ONCE = 64
"""Most texts in one pass of lm-eval."""


@dataclass(frozen=True)
class HarnessTask:
    """A task, group or tag of lm-eval.

    Attributes:
        name: its name.
        identity: everything but the weights that determines its results: lm-eval's version, and of each single task the
            version, the configuration and the documents.
    """

    name: str
    identity: dict[str, Any]


def load_harness(settings: LmEvalSettings) -> list[HarnessTask]:
    """Find the tasks that the settings name, and load their data.

    Raises:
        InputError: lm-eval is not installed, there is no such task, it runs code that a model writes, or its data
            cannot be loaded.
    """
    with _quiet():
        return [_load(name, settings) for name in settings.tasks]


def _load(name: str, settings: LmEvalSettings) -> HarnessTask:
    manager = _manager(settings)
    version = importlib.metadata.version("lm_eval")
    if name not in manager.all_tasks:
        raise InputError(
            f"lm-eval {version} has no task {name!r}.",
            remedy=closest(name, manager.all_tasks, cutoff=0.7),
        )
    try:
        loaded = manager.load([name])
    except Exception as error:  # A task is foreign code and foreign data, which may fail in any way.
        raise InputError(
            f"The task {name} of lm-eval cannot be loaded.",
            got=f"{type(error).__name__}: {first_line(error)}",
            remedy="its data may be on the Hugging Face hub: run where the hub answers, or have the data in its cache; "
            "abilities.lm_eval.include takes tasks of your own, on local files",
        ) from None
    for one, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"The task {one} of lm-eval runs code that the model writes.",
                remedy="export the model with `factsmith edit --out`, and run lm-eval on it in a sandbox",
            )
    parts = {one: _identity(task, settings) for one, task in sorted(loaded["tasks"].items())}
    given = {"limit": settings.limit, "fewshot": settings.fewshot}
    return HarnessTask(name, {"lm_eval": version, "task": name, **given, "parts": parts})


def _identity(task: Any, settings: LmEvalSettings) -> dict[str, Any]:
    """The version of a single task, and digests of its configuration and of its documents.

    The paths of local files are left out: only their content matters.
    """
    config = {name: value for name, value in task.dump_config().items() if name != "dataset_kwargs"}
    docs = task.eval_docs
    count = len(docs) if settings.limit is None else min(settings.limit, len(docs))
    shots = task.fewshot_docs() if (settings.fewshot or config.get("num_fewshot")) else None
    return {
        "version": str(task.VERSION),
        "config": digest_of(_plain(config)),
        "docs": digest_of([_plain(docs[place]) for place in range(count)]),
        "shots": digest_of([_plain(one) for one in shots]) if shots is not None else None,
    }


def _plain(value: Any) -> Any:
    """``value`` as JSON. What JSON has no word for, such as an image, becomes the text that Python shows."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str | int | float | None) else repr(value)


def run_harness(decoder: Decoder, name: str, settings: LmEvalSettings, *, most_tokens: int) -> list[dict[str, Any]]:
    """The results of a task, group or tag, one row per single task or group, and metric.

    Args:
        decoder: the model, edited or not.
        name: name of the task, which ``load_harness`` has found.
        settings: the number of documents and of solved examples in a prompt.
        most_tokens: most positions in one forward pass, or one text.

    Returns:
        Rows of ``task``, ``metric``, ``value``, ``stderr`` (``None`` if lm-eval gives none) and ``examples``.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet(), _seeds_restored(), contextlib.redirect_stdout(sys.stderr):
        # lm-eval sets a padding token, and a tokenizer of ours must not change.
        model = HFLM(pretrained=decoder.model, tokenizer=copy.deepcopy(decoder.tokenizer))
        model.batch_size_per_gpu = min(_MOST_AT_ONCE, max(1, most_tokens // decoder.context_length))
        found = simple_evaluate(
            model=model,
            tasks=[name],
            num_fewshot=settings.fewshot,
            limit=settings.limit,
            task_manager=_manager(settings),
            log_samples=False,
        )
    assert found is not None
    counts = {one: its["effective"] for one, its in found["n-samples"].items()}
    rows = []
    for task, metrics in {**found["results"], **found.get("groups", {})}.items():
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if (
                not chosen
                or metric.endswith("_stderr")
                or isinstance(value, bool)
                or not isinstance(value, int | float)
            ):
                continue
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if chosen == "none" else f"{metric} {chosen}",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "examples": counts.get(task, sum(counts.values())),
                }
            )
    return rows


def _manager(settings: LmEvalSettings) -> Any:
    """The index of all tasks of lm-eval and of the user.

    Reading lm-eval's own takes long. They are left out if all that is wanted are single tasks of the user.

    Raises:
        InputError: lm-eval is not installed, or the user's folder does not exist.
    """
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InputError(
            "lm-eval is not installed.", got=str(error), remedy="pip install 'factsmith[lm-eval]'"
        ) from None
    include = None if settings.include is None else settings.include.expanduser().resolve()
    if include is not None:
        if not include.is_dir():
            raise InputError(f"{include} is not a folder.", remedy="set abilities.lm_eval.include to a folder of YAMLs")
        own = _index(include, include_defaults=False)
        if set(settings.tasks) <= set(own.all_subtasks):
            return own
    return _index(include, include_defaults=True)


@cache
def _index(include: Path | None, *, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=include, include_defaults=include_defaults)
    except Exception as error:  # a file of the user's that is no YAML
        raise InputError(
            f"The tasks in {include} cannot be read.", got=f"{type(error).__name__}: {first_line(error)}"
        ) from None


@contextlib.contextmanager
def _seeds_restored() -> Iterator[None]:
    """Keep lm-eval's seeds, which are those of its command line, from the rest of the process."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only errors of lm-eval and transformers: they warn of a model in memory, which is what we want."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers():
            yield
    finally:
        logger.setLevel(level)
