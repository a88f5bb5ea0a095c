"""Time and money of planned stages on some nodes.

A *node* is a worker with the model in memory. It has as many GPUs as the model needs, whose blocks then run one after
the other, so that a worker with two GPUs is as quick as one GPU that had room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from factsmith.artifacts.errors import InputError
from factsmith.tasks.planning.precompute_plan import StagePlan
from factsmith.tasks.planning.prediction.gpus import Gpu
from factsmith.tasks.planning.prediction.rates import LOAD, Rate, Rates, work_of

__all__ = ["Fleet", "Predicted", "Prediction", "predict"]

DIVIDED = ("keys", "covariance", "values", "evaluation")
"""Stages whose work nodes share. The others run on one node, while the others wait."""

TEXT, PROMPTS, ALGEBRA = 0.4, 0.1, 0.3
"""Shares of a GPU's published peak that are assumed: for passes over text, for those over short prompts, and for
products and decompositions of covariances."""

_OVER_TEXT = ("keys", "covariance", "leverage", "drift")

STORE = 1e9
"""Bytes per second that are assumed of the store and of the network, where nothing was measured."""

TOKENS = 2e5
"""Tokens per second that are assumed of the tokenizer, which runs on a CPU, where nothing was measured."""

START = 30.0
"""Seconds that are assumed for a process to start, until it has imported everything, where nothing was measured."""


@dataclass(frozen=True)
class Fleet:
    """What a run would run on.

    Attributes:
        nodes: number of nodes.
        gpu: the GPU of every node; ``None`` for this machine's device.
        rates: what was measured on that device; ``None`` if nothing was.
        price: price of a GPU, or of a node without one, for an hour; ``None`` if it is not known.
    """

    nodes: int = 1
    gpu: Gpu | None = None
    rates: Rates | None = None
    price: float | None = None


@dataclass(frozen=True)
class Predicted:
    """The time of one stage.

    Attributes:
        name: name of the stage; ``start`` for the start of the nodes, and ``reduction`` for adding up their sums.
        seconds: time that passes, in seconds.
        divided: whether the nodes share it.
        rate: where the rate is from: ``measured``, ``published`` or ``assumed``.
    """

    name: str
    seconds: float
    divided: bool
    rate: str


@dataclass(frozen=True)
class Prediction:
    """How long a run would take.

    Attributes:
        stages: its stages, with the start and the reduction.
        seconds: time that passes in all, in seconds.
        nodes: number of nodes.
        gpus: GPUs of a node; 0 without.
        device: the device of a node, and how it is known.
        hours: node hours, or GPU hours if a node has several.
        price: ``hours`` at the given price; ``None`` without one.
    """

    stages: Sequence[Predicted]
    seconds: float
    nodes: int
    gpus: int
    device: str
    hours: float
    price: float | None


def predict(
    stages: Sequence[StagePlan], fleet: Fleet, *, weights: float, dtype: str, sums: float, cells: int = 1
) -> Prediction:
    """Predict the time of a run.

    Args:
        stages: the plan of its stages.
        fleet: what it would run on.
        weights: bytes of the model's weights.
        dtype: data type of the model's weights.
        sums: bytes of the sums of k k^T of all edited layers, which each node has.
        cells: number of cells of a sweep, which run on different nodes.

    Raises:
        InputError: nothing is known of the device.
    """
    if fleet.rates is None and fleet.gpu is None:
        raise InputError(
            "Nothing is known of this machine's speed.",
            remedy="measure it with `factsmith plan ... --measure`, or name a --gpu",
        )
    left = [stage for stage in stages if stage.missing]
    found = [_start(fleet, weights)] if left else []
    for stage in left:
        seconds, rate = _seconds(stage, fleet, weights, dtype)
        among = fleet.nodes if stage.name in DIVIDED else 1 if stage.makes else min(cells, fleet.nodes)
        found.append(Predicted(stage.name, seconds / among, among > 1, rate))
        if stage.name == "covariance" and among > 1:
            found.append(Predicted("reduction", fleet.nodes * sums / STORE, False, "assumed"))
    gpus = 0
    if fleet.gpu is not None:
        memory = max((stage.memory for stage in left if stage.name in DIVIDED), default=0)
        gpus = math.ceil(max(memory, weights, 1) / (0.9 * fleet.gpu.memory))
    seconds = sum(one.seconds for one in found)
    hours = seconds / 3600 * fleet.nodes * max(1, gpus)
    return Prediction(
        stages=found,
        seconds=seconds,
        nodes=fleet.nodes,
        gpus=gpus,
        device=_device(fleet),
        hours=hours,
        price=None if fleet.price is None else hours * fleet.price,
    )


def _device(fleet: Fleet) -> str:
    if (rates := fleet.rates) is not None:
        return f"{rates.device}, measured on {rates.model} on {rates.measured}"
    return f"{fleet.gpu.name}, published rates" if fleet.gpu else ""


def _start(fleet: Fleet, weights: float) -> Predicted:
    """The start of a node, with the model. All nodes start at once."""
    if (rates := fleet.rates) is not None and LOAD in rates.stages:
        return Predicted("start", rates.stages[LOAD].seconds(weights), False, "measured")
    return Predicted("start", START + weights / STORE, False, "assumed")


def _seconds(stage: StagePlan, fleet: Fleet, weights: float, dtype: str) -> tuple[float, str]:
    """The seconds of a stage on one node, and where they are from."""
    rate: Rate | None = fleet.rates.stages.get(stage.name) if fleet.rates is not None else None
    if rate is not None:
        return rate.seconds(work_of(stage, weights)), "measured"
    if stage.name == "model":
        return weights / STORE, "assumed"
    if stage.name == "tokens":
        return stage.missing / TOKENS, "assumed"
    if fleet.gpu is None:
        return 0.0, "unknown"
    share = TEXT if stage.name in _OVER_TEXT else PROMPTS
    passes = (stage.flop - stage.algebra) / (share * fleet.gpu.rate(dtype))
    double = stage.name in ("factor", "leverage", "principal directions")
    algebra = stage.algebra / (ALGEBRA * fleet.gpu.rate("float64" if double else "float32"))
    return passes + algebra + stage.bytes / STORE, "published"
