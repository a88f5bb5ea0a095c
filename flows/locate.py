"""Flow ``locate``: which layers of a model carry its facts, and so which to edit."""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict

from factsmith.flows.reporting.figures import effects_by_role
from factsmith.tasks.locate.effects import LAST_SUBJECT, LAST_TOKEN
from factsmith.tasks.locate.stage import TABLE
from factsmith.tasks.locate.stage import locate as locate_stage
from factsmith.tasks.model.stage import model
from factsmith.tasks.pipeline.workspace import StageReport
from factsmith.tasks.planning.preflight import open_bench
from factsmith.tasks.planning.settings import Settings

__all__ = ["LocateReport", "locate"]


class LocateReport(BaseModel):
    """The outcome of ``locate``, as ``--json`` prints it.

    Attributes:
        run_id: of the flow run in Prefect.
        mlflow_run_id: of the run in MLflow.
        stages: in their order.
        layers: proposed; none if no layer stands out.
        mediated: by layer, what of a state's effect at the subject's last token goes through the MLPs above it.
        effects: average indirect effect by kind and role of the token, a number a layer; probabilities, not percent.
        clean: mean P(object).
        corrupted: mean P(object) with noise on the subject.
        facts: that were traced.
        unknown: that were looked at, and that the model does not know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    mlflow_run_id: str
    stages: list[StageReport]
    layers: list[int]
    mediated: list[float]
    effects: dict[str, dict[str, list[float]]]
    clean: float
    corrupted: float
    facts: int
    unknown: int


@flow(name="locate")
def locate(settings: Settings) -> LocateReport:
    """Trace facts that a model knows through its layers.

    Args:
        settings: the run, resolved; method and corpus are not looked at.
    """
    from prefect.runtime import flow_run

    with open_bench(settings, "locate", editing=False) as bench:
        location = locate_stage(bench, model(bench))
        bench.tracker.metrics({"clean": location.clean, "corrupted": location.corrupted})
        for kind, by_role in location.effects.items():
            for role in (LAST_SUBJECT, LAST_TOKEN):
                by_layer = by_role.get(role, [])
                bench.tracker.metrics(
                    {f"effect/{kind}/{role}/layer_{layer}": value for layer, value in enumerate(by_layer)}
                )
        bench.tracker.metrics({f"mediated/layer_{layer}": value for layer, value in enumerate(location.mediated)})
        bench.tracker.tags({"layers": str(location.layers)})
        bench.tracker.file(location.artifact.path / TABLE)
        bench.tracker.figure(effects_by_role(location.effects, location.layers), "effects.png")
        return LocateReport(
            run_id=str(flow_run.id),
            mlflow_run_id=bench.tracker.run_id,
            stages=bench.reports,
            layers=location.layers,
            mediated=location.mediated,
            effects=location.effects,
            clean=location.clean,
            corrupted=location.corrupted,
            facts=location.facts,
            unknown=location.unknown,
        )
