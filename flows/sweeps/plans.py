"""Plans of runs and of sweeps, with the time that they would take."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.flows.sweeps.cells import open_sweep
from factsmith.flows.sweeps.lender import Lender
from factsmith.flows.sweeps.plan_table import plan_table
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.planning.home import open_store
from factsmith.tasks.planning.plan import StagePlan, plan
from factsmith.tasks.planning.precompute_plan import PrecomputePlanner, unstored
from factsmith.tasks.planning.prediction.gpus import find_gpu
from factsmith.tasks.planning.prediction.machine import device_name
from factsmith.tasks.planning.prediction.predict import Fleet, Prediction, predict
from factsmith.tasks.planning.prediction.rates import load_rates, work_of
from factsmith.tasks.planning.run import Run

__all__ = ["Planned", "Wanted", "plan_run", "plan_sweep"]


@dataclass(frozen=True)
class Wanted:
    """The prediction that a user wants.

    Attributes:
        nodes: number of nodes; ``None`` if the user has not said.
        gpu: the GPU of a node; ``None`` for this machine's device.
        price: price of a GPU for an hour, or of a node.
    """

    nodes: int | None = None
    gpu: str | None = None
    price: float | None = None

    def fleet(self, run: Run) -> Fleet | None:
        """What the run would run on; ``None`` if no prediction is asked for and nothing was measured here.

        Raises:
            InputError: there is no such GPU.
        """
        measured = load_rates(home())
        gpu = None if self.gpu is None else find_gpu(self.gpu)
        if gpu is not None:
            rates = next((one for name, one in measured.items() if gpu.name in name.lower()), None)
        else:
            rates = measured.get(device_name(run.workspace.device, run.settings.runtime.threads))
            if rates is None and self.nodes is None and self.price is None:
                return None
        return Fleet(self.nodes or 1, gpu, rates, self.price)


@dataclass(frozen=True)
class Planned:
    """The plan of a run or of a sweep.

    Attributes:
        title: what is planned.
        stages: the plans of its stages.
        unstored: what is not stored.
        prediction: how long it would take, if that is known.
    """

    title: str
    stages: list[StagePlan]
    unstored: list[str]
    prediction: Prediction | None

    def table(self) -> Any:
        """The plan as a table for the terminal."""
        return plan_table(self.stages, self.title, self.unstored, self.prediction)

    def json(self) -> str:
        """The plan as one JSON document."""
        predicted = {} if self.prediction is None else {"prediction": asdict(self.prediction)}
        return json.dumps({"stages": [asdict(stage) for stage in self.stages], **predicted})


def plan_run(run: Run, wanted: Wanted, *, dataset: bool) -> Planned:
    """The plan of a run whose input has been checked.

    Args:
        run: the run.
        wanted: the prediction that the user wants.
        dataset: whether facts are to be written and scored.

    Raises:
        InputError: a prediction is wanted, and nothing is known of the device.
    """
    fleet = wanted.fleet(run)
    stages = plan(run, dataset=dataset)
    title = f"A run of {run.settings.method.name} on {run.settings.model.name}"
    return Planned(title, stages, unstored(run), _predicted(run, stages, fleet, 1))


def plan_sweep(arguments: Sequence[str], wanted: Wanted, *, dataset: bool) -> Planned:
    """The plan of a sweep. What cells share is counted once; the scores of the unedited model are not.

    Raises:
        InputError: an argument is not understood, no cell can run, cells have different models, or a prediction is
            wanted and nothing is known of the device.
    """
    opened = open_sweep(arguments)
    lender = Lender(open_store())
    settings = [one for place, (_, one) in enumerate(opened.cells) if place not in opened.refused]
    if len({one.model.model_dump_json() for one in settings}) > 1:
        raise InputError(
            "A plan is of one model.", got="a sweep over several", remedy="plan the sweep of each model by itself"
        )
    runs = [lender.run(one) for one in settings]
    fleet = wanted.fleet(runs[0])
    stages = _together([plan(run, dataset=dataset) for run in runs])
    title = f"A sweep of {len(runs)} cells on {settings[0].model.name}"
    not_stored = [name for name in ("keys", "factors") if all(name in unstored(run) for run in runs)]
    return Planned(title, stages, not_stored, _predicted(runs[0], stages, fleet, len(runs)))


def _predicted(run: Run, stages: Sequence[StagePlan], fleet: Fleet | None, cells: int) -> Prediction | None:
    if fleet is None:
        return None
    planner = PrecomputePlanner(run)
    sums = planner.matrix * len(planner.layers)
    return predict(stages, fleet, weights=planner.weights, dtype=run.model.dtype, sums=sums, cells=cells)


def _together(plans: Sequence[Sequence[StagePlan]]) -> list[StagePlan]:
    """The stages of all cells by name. Of those that make the same, the one with the most work counts."""
    alike: dict[tuple[str, str], StagePlan] = {}
    for number, stages in enumerate(plans):
        for stage in stages:
            key = stage.name, stage.makes or str(number)
            if key not in alike or work_of(stage, 1) > work_of(alike[key], 1):
                alike[key] = stage
    by_name: dict[str, list[StagePlan]] = defaultdict(list)
    for stage in alike.values():
        by_name[stage.name].append(stage)
    return [
        replace(
            some[0],
            missing=sum(one.missing for one in some),
            total=sum(one.total for one in some),
            flop=sum(one.flop for one in some),
            bytes=sum(one.bytes for one in some),
            memory=max(one.memory for one in some),
            algebra=sum(one.algebra for one in some),
        )
        for some in by_name.values()
    ]
