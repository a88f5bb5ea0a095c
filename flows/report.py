"""What a run tells whoever started it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from factsmith.tasks.bench import Bench, StageReport
from factsmith.tasks.evaluation import Scores

__all__ = ["Report"]


class Report(BaseModel):
    """The outcome of a flow, as ``--json`` prints it.

    Attributes:
        run_id: of the flow run in Prefect.
        mlflow_run_id: of the parent run in MLflow.
        stages: in their order.
        metrics: by phase (``before``, ``after``), in percent; empty if nothing was scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    mlflow_run_id: str
    stages: list[StageReport]
    metrics: dict[str, dict[str, float | None]]
    facts: int = Field(0, exclude=True, description="that were scored")

    @classmethod
    def of(cls, bench: Bench, scores: Scores | None = None) -> Report:
        from prefect.runtime import flow_run

        return cls(
            run_id=str(flow_run.id),
            mlflow_run_id=bench.tracker.run_id,
            stages=bench.reports,
            metrics={"before": scores.before, "after": scores.after} if scores else {},
            facts=scores.artifact.summary["records"] if scores else 0,
        )
