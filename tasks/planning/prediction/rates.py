"""Rates of a machine: how many seconds a stage takes, from runs of two sizes.

The seconds of a stage are a fixed part and one that is in proportion to its *work*. Work is the FLOP of its plan, or
what the plan counts (tokens, facts) if it has no FLOP for it. The work of the model's fingerprint, and of loading the
model, are the bytes of its weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from factsmith.artifacts.errors import InputError
from factsmith.tasks.planning.precompute_plan import StagePlan

__all__ = ["LOAD", "Rate", "Rates", "fit", "load_rates", "save_rates", "work_of"]

LOAD = "load"
"""Stands for loading a model into memory, beside the stages."""

_BY_WEIGHTS = ("model", LOAD)
"""Stages whose work are the bytes of the weights."""

_FILE = "rates.json"


@dataclass(frozen=True)
class Rate:
    """Seconds of a stage: ``fixed`` + ``per_work`` * work."""

    fixed: float
    per_work: float

    def seconds(self, work: float) -> float:
        """The seconds that ``work`` takes."""
        return self.fixed + self.per_work * work


@dataclass(frozen=True)
class Rates:
    """What was measured on a device.

    Attributes:
        device: its name.
        model: the model that was run.
        dtype: the data type of its weights.
        threads: CPU threads.
        measured: the day, as ISO 8601.
        stages: the rate of each stage.
    """

    device: str
    model: str
    dtype: str
    threads: int
    measured: str
    stages: Mapping[str, Rate]


def work_of(stage: StagePlan, weights: float) -> float:
    """The work of a stage. ``weights`` are the bytes of the model's weights."""
    if stage.name in _BY_WEIGHTS:
        return weights * stage.missing
    return stage.flop or float(stage.missing)


def fit(observed: Sequence[tuple[float, float]]) -> Rate:
    """The rate of a stage from pairs of work and seconds, of which two have different work, or of one alone.

    Neither part is negative: if the larger work took no longer than its share, there is no fixed part.
    """
    observed = sorted(one for one in observed if one[0] > 0)
    (little, soon), (much, late) = observed[0], observed[-1]
    if much > little and late > soon:
        per_work = (late - soon) / (much - little)
        if (fixed := soon - per_work * little) >= 0:
            return Rate(fixed, per_work)
    return Rate(0.0, sum(seconds for _, seconds in observed) / sum(work for work, _ in observed))


def load_rates(home: Path) -> dict[str, Rates]:
    """The rates that have been measured in a home, by device.

    Raises:
        InputError: their file cannot be read.
    """
    path = home / _FILE
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for device, about in content.items():
            stages = {name: Rate(**rate) for name, rate in about.pop("stages").items()}
            found[device] = Rates(device=device, stages=stages, **about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read.", got=f"{type(error).__name__}: {error}", remedy="remove it, and measure again"
        ) from None
    return found


def save_rates(home: Path, rates: Rates) -> Path:
    """Keep rates in a home, in place of earlier ones of the same device."""
    content = {device: asdict(one) for device, one in {**load_rates(home), rates.device: rates}.items()}
    for about in content.values():
        del about["device"]
    path, draft = home / _FILE, home / f".{_FILE}-{os.getpid()}"
    draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
    draft.replace(path)
    return path
