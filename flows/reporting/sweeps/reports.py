"""Reports of sweeps, as ``--json`` prints them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from factsmith.flows.reporting.curves import Curves
from factsmith.flows.reporting.drift import DriftMeasure
from factsmith.tasks.abilities.harness_stage import HarnessResult
from factsmith.tasks.abilities.measures import Ability
from factsmith.tasks.editors.inference import Inference
from factsmith.tasks.evaluation.resampling import Resampled
from factsmith.tasks.pipeline.workspace import StageReport

__all__ = ["CellReport", "SweepReport"]


class CellReport(BaseModel):
    """The outcome of one cell of a sweep.

    Attributes:
        place: the value of each setting that the sweep varies.
        mlflow_run_id: id of the cell's run in MLflow; ``None`` if the cell did not start.
        facts: number of facts that were written and scored.
        tokens: number of tokens that C0 covers; 0 if the cell failed.
        dynamic_multiplier: d_m: number of tokens that C0 covers, in multiples of d_k; 0 if the cell failed.
        metrics: metrics by phase (``before``, ``after``), in percent; empty if the cell failed.
        trajectory: the curves of a sequence's scores and of its relative changes; empty for independent batches.
        intervals: 95 % bootstrap interval of each metric after the edit.
        intervals_over: what these intervals resample, as in ``Report``; ``None`` if the cell failed.
        drift: how far the predictions of held-out text have moved; empty if that was not measured.
        abilities: general abilities before and after the edit; empty if none were measured.
        lm_eval: results of lm-eval before and after the edit; empty if it was not run.
        seconds_an_edit: as in ``Report``.
        inference: what the last edit costs at inference; ``None`` if it adds no memory, which costs nothing.
        stages: the stages, in order.
        seconds: time taken, in seconds.
        error: why the cell failed; ``None`` if it did not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: dict[str, str]
    mlflow_run_id: str | None = None
    facts: int = 0
    tokens: int = 0
    dynamic_multiplier: float = 0.0
    metrics: dict[str, dict[str, float | None]] = {}
    trajectory: Curves = {}
    intervals: dict[str, tuple[float, float]] = {}
    intervals_over: Resampled | None = None
    drift: list[DriftMeasure] = []
    abilities: list[Ability] = []
    lm_eval: list[HarnessResult] = []
    seconds_an_edit: float | None = None
    inference: Inference | None = None
    stages: list[StageReport] = []
    seconds: float = 0.0
    error: str | None = None


class SweepReport(BaseModel):
    """The outcome of ``sweep``.

    Attributes:
        run_id: id of the flow run in Prefect; ``None`` in a run without Prefect.
        mlflow_run_id: id of the sweep's run in MLflow.
        name: name of the experiment.
        axes: for each axis, the settings that vary along it.
        metrics: metrics that some cell has, in display order.
        mean: the harmonic mean that summarises a cell, and the metrics it is made of; ``None`` if no cell has it.
        cells: the cells, in the order of the axes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str | None
    mlflow_run_id: str
    name: str
    axes: list[list[str]]
    metrics: list[str]
    mean: tuple[str, list[str]] | None
    cells: list[CellReport]
