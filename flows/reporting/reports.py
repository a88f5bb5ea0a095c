"""What a run, or a sweep of many, tells whoever started it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from factsmith.flows.reporting.curves import Curves
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.pipeline.workspace import Bench, StageReport

__all__ = ["CellReport", "LayerReport", "PreparationReport", "Report", "SweepReport"]


class Report(BaseModel):
    """The outcome of a flow, as ``--json`` prints it.

    Attributes:
        run_id: of the flow run in Prefect.
        mlflow_run_id: of the parent run in MLflow.
        stages: in their order.
        metrics: by phase (``before``, ``after``), in percent; empty if nothing was scored.
        course: of a sequence, ``Curves`` of its scores; empty if it is none.
        dynamic_multiplier: d_m of C0, given or found; ``None`` if the run has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    mlflow_run_id: str
    dynamic_multiplier: float | None = None
    stages: list[StageReport]
    metrics: dict[str, dict[str, float | None]]
    course: Curves = {}
    facts: int = Field(0, exclude=True, description="that were scored")

    @classmethod
    def of(
        cls, bench: Bench, scores: Scores | None = None, course: Curves | None = None, *, tokens: int | None = None
    ) -> Report:
        from prefect.runtime import flow_run

        return cls(
            run_id=str(flow_run.id),
            mlflow_run_id=bench.tracker.run_id,
            dynamic_multiplier=None if tokens is None else tokens / bench.checkpoint.key_width,
            stages=bench.reports,
            metrics={"before": scores.before, "after": scores.after} if scores else {},
            course=course or {},
            facts=scores.artifact.summary["records"] if scores else 0,
        )


class LayerReport(BaseModel):
    """How well C0 of one layer is known.

    Attributes:
        layer: counted from 0.
        tokens: that C0 is the mean of.
        dynamic_multiplier: the same in multiples of d_k.
        leverage: held-out; ``None`` if C0 is singular, or the corpus has no keys to hold out.
        effective_rank: of C0, at most d_k.
        condition_number: of C0; ``None`` if it is singular.
        eigenvalues: of C0: the largest, median and smallest, and those that 1, 10, 90 and 99 % of all exceed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    tokens: int
    dynamic_multiplier: float
    leverage: float | None
    effective_rank: float
    condition_number: float | None
    eigenvalues: dict[str, float]


class PreparationReport(Report):
    """The outcome of ``precompute --report``.

    Attributes:
        layers: edited ones, ascending.
    """

    layers: list[LayerReport]


class CellReport(BaseModel):
    """What became of one cell.

    Attributes:
        place: value of each setting that the sweep varies.
        mlflow_run_id: of its run; ``None`` if it did not begin.
        facts: that were written and scored.
        tokens: that C0 is the mean of; 0 if the cell failed.
        dynamic_multiplier: the same in multiples of d_k.
        metrics: by phase (``before``, ``after``), in percent; empty if the cell failed.
        course: of a sequence, ``Curves`` of its scores; empty if it is none.
        intervals: 95 % bootstrap interval over records of each metric after the edit.
        stages: in their order.
        seconds: it took.
        error: why it failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: dict[str, str]
    mlflow_run_id: str | None = None
    facts: int = 0
    tokens: int = 0
    dynamic_multiplier: float = 0.0
    metrics: dict[str, dict[str, float | None]] = {}
    course: Curves = {}
    intervals: dict[str, tuple[float, float]] = {}
    stages: list[StageReport] = []
    seconds: float = 0.0
    error: str | None = None


class SweepReport(BaseModel):
    """The outcome of ``sweep``, as ``--json`` prints it.

    Attributes:
        run_id: of the flow run in Prefect.
        mlflow_run_id: of the parent run in MLflow.
        name: of the experiment.
        axes: settings that vary, those that vary together side by side.
        metrics: that some cell tells, in the order they are shown in.
        mean: the harmonic mean that sums up a cell, and the metrics it is of; ``None`` if no cell tells it.
        cells: in the order of the axes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    mlflow_run_id: str
    name: str
    axes: list[list[str]]
    metrics: list[str]
    mean: tuple[str, list[str]] | None
    cells: list[CellReport]
