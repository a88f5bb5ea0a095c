"""Reports: the outcome of each flow, as ``--json`` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from factsmith.artifacts.formats import load_table
from factsmith.flows.reporting.curves import Curves
from factsmith.flows.reporting.drift import DriftMeasure
from factsmith.tasks.abilities.harness_stage import HarnessResult
from factsmith.tasks.abilities.measures import Ability
from factsmith.tasks.editors.inference import Inference
from factsmith.tasks.evaluation.answers_stage import Answer
from factsmith.tasks.evaluation.resampling import Resampled
from factsmith.tasks.evaluation.stage import Scores
from factsmith.tasks.evaluation.summary import intervals, record_values
from factsmith.tasks.export.truncation_stage import TruncatedChange
from factsmith.tasks.pipeline.stage import SECONDS_AN_EDIT
from factsmith.tasks.pipeline.workspace import StageReport
from factsmith.tasks.planning.run import Run
from factsmith.tasks.tracking.runs import RECORDS

__all__ = [
    "ExportReport",
    "HeldOut",
    "KnownReport",
    "LayerReport",
    "LocateReport",
    "PrecomputeReport",
    "Report",
    "SCORES",
    "Scored",
    "Trial",
    "TuneReport",
]


SCORES = ("ES", "PS", "NS", "S")
"""The metrics that ``tune`` shows."""


@dataclass(frozen=True)
class Scored:
    """What scoring an edited model gives.

    Attributes:
        scores: the scores before and after the edit.
        curves: the curves of a sequence; empty for independent batches.
        abilities: general abilities before and after the edit; empty if none are measured.
        drift: how far the predictions of held-out text have moved; empty if that was not measured.
        lm_eval: results of lm-eval before and after the edit; empty if it is not run.
        inference: what the last edit costs at inference; ``None`` if it adds no memory.
    """

    scores: Scores
    curves: Curves = field(default_factory=dict)
    abilities: list[Ability] = field(default_factory=list)
    drift: list[DriftMeasure] = field(default_factory=list)
    lm_eval: list[HarnessResult] = field(default_factory=list)
    inference: Inference | None = None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportReport(_Frozen):
    """The outcome of ``export``, and of the export of ``edit``.

    Attributes:
        run: id of the run whose edit was exported.
        edit: the address of the edit.
        form: the name of the form.
        out: the folder that was written.
        bytes: size of its files.
        rank: the largest rank of an adapter; ``None`` for another form.
        truncated: what truncation did to each change; empty if nothing was truncated.
        scores: of a truncated edit, each score ``before`` the edit, after the ``exact`` edit and after the
            ``truncated`` one: the number of facts that hold, or metrics in percent.
        pushed: the address of the commit on the hub; ``None`` if it was not pushed.
    """

    run: str
    edit: str
    form: str
    out: Path
    bytes: int
    rank: int | None = None
    truncated: list[TruncatedChange] = []
    scores: dict[str, dict[str, float | None]] = {}
    pushed: str | None = None


class Report(_Frozen):
    """The outcome of ``run``, ``precompute``, ``edit`` or ``evaluate``.

    Attributes:
        run_id: id of the flow run in Prefect; ``None`` in a run without Prefect.
        mlflow_run_id: id of the run in MLflow.
        stages: the stages, in order.
        metrics: metrics by phase (``before``, ``after``), in percent; empty if nothing was scored.
        intervals: 95 % bootstrap interval of each metric after the edit, in percent.
        intervals_over: what these intervals resample: facts, batches, or facts within the same edits.
        records: number of records that each metric rests on.
        trajectory: the curves of a sequence's scores and of its relative changes; empty for independent batches.
        dynamic_multiplier: d_m of C0, as given or as found by the search; ``None`` if the run reports none.
        drift: how far the predictions of held-out text have moved; empty if that was not measured.
        answers: the answers to each fact's prompt before and after ``edit``.
        abilities: general abilities before and after the edit: one entry per task, way of answering and metric.
        lm_eval: results of lm-eval before and after the edit: one entry per task and metric.
        seconds_an_edit: seconds that a fact took to write, measured when its artifacts were built, by this run or an
            earlier one; ``None`` if the run wrote none. What facts share, such as C0, is not part of it.
        inference: what the last edit costs at inference; ``None`` if it adds no memory, which costs nothing.
        export: what ``edit --out`` wrote; ``None`` if nothing was exported.
    """

    run_id: str | None
    mlflow_run_id: str
    dynamic_multiplier: float | None = None
    stages: list[StageReport]
    metrics: dict[str, dict[str, float | None]]
    intervals: dict[str, tuple[float, float]] = {}
    intervals_over: Resampled | None = None
    records: dict[str, int] = {}
    trajectory: Curves = {}
    drift: list[DriftMeasure] = []
    answers: list[Answer] = []
    abilities: list[Ability] = []
    lm_eval: list[HarnessResult] = []
    seconds_an_edit: float | None = None
    inference: Inference | None = None
    export: ExportReport | None = None
    facts: int = Field(0, exclude=True, description="number of facts that were scored")

    @classmethod
    def of(cls, run: Run, scored: Scored | None = None, *, tokens: int | None = None) -> Report:
        """The report of a run.

        Args:
            run: the run.
            scored: its scores, if it was scored.
            tokens: number of tokens that C0 covers.
        """
        scores, after = scored.scores if scored else None, None
        if scores:
            after = record_values(load_table(scores.artifact.path / RECORDS), "after", run.families)
        return cls(
            run_id=run.workspace.flow_run,
            mlflow_run_id=run.workspace.tracker.run_id,
            intervals={name: (one.low, one.high) for name, one in intervals(after).items()} if after else {},
            intervals_over=after.resampling.over if after else None,
            records=after.counts if after else {},
            dynamic_multiplier=None if tokens is None else tokens / run.model.key_width,
            stages=run.workspace.reports,
            metrics={"before": scores.before, "after": scores.after} if scores else {},
            trajectory=scored.curves if scored else {},
            drift=scored.drift if scored else [],
            abilities=scored.abilities if scored else [],
            lm_eval=scored.lm_eval if scored else [],
            inference=scored.inference if scored else None,
            facts=scores.artifact.summary["records"] if scores else 0,
            seconds_an_edit=seconds_an_edit(run.workspace.reports),
        )


def seconds_an_edit(stages: Sequence[StageReport]) -> float | None:
    """The seconds that a fact took in all stages that write it; ``None`` if none of them did."""
    found = [stage.metrics[SECONDS_AN_EDIT] for stage in stages if SECONDS_AN_EDIT in stage.metrics]
    return round(sum(found), 3) if found else None


class LayerReport(_Frozen):
    """How well C0 of one layer is known.

    Attributes:
        layer: the layer, counted from 0.
        tokens: number of tokens that C0 covers.
        dynamic_multiplier: d_m: number of tokens that C0 covers, in multiples of d_k.
        leverage: held-out leverage; ``None`` if C0 is singular, or the corpus has no keys left to hold out.
        effective_rank: effective rank of C0, at most d_k.
        condition_number: condition number of C0; ``None`` if it is singular.
        eigenvalues: eigenvalues of C0: the largest, the median, the smallest, and those that 1, 10, 90 and 99 % of all
            eigenvalues exceed.
    """

    layer: int
    tokens: int
    dynamic_multiplier: float
    leverage: float | None
    effective_rank: float
    condition_number: float | None
    eigenvalues: dict[str, float]


class PrecomputeReport(Report):
    """The outcome of ``precompute --report``.

    Attributes:
        layers: the edited layers, ascending.
    """

    layers: list[LayerReport]


class KnownReport(_Frozen):
    """The outcome of ``known``.

    Attributes:
        run_id: id of the flow run in Prefect; ``None`` in a run without Prefect.
        mlflow_run_id: id of the run in MLflow.
        stages: the stages, in order.
        facts: number of facts with a true object.
        recalled: case ids of facts whose true object is the model's first choice at every token.
        preferred: case ids of facts whose true object has a lower mean NLL per token than the new object.
    """

    run_id: str | None
    mlflow_run_id: str
    stages: list[StageReport]
    facts: int
    recalled: list[int]
    preferred: list[int]


class LocateReport(_Frozen):
    """The outcome of ``locate``.

    Attributes:
        run_id: id of the flow run in Prefect; ``None`` in a run without Prefect.
        mlflow_run_id: id of the run in MLflow.
        stages: the stages, in order.
        layers: the proposed layers; empty if no layer stands out.
        mediated: by layer, the part of a state's effect at the subject's last token that the MLPs above mediate.
        effects: average indirect effect by kind and role of the token, one number per layer; a probability, not
            percent.
        clean: mean P(object).
        corrupted: mean P(object) with noise on the subject.
        facts: number of facts that were traced.
        unknown: number of facts that were tried and that the model does not know.
    """

    run_id: str | None
    mlflow_run_id: str
    stages: list[StageReport]
    layers: list[int]
    mediated: list[float]
    effects: dict[str, dict[str, list[float]]]
    clean: float
    corrupted: float
    facts: int
    unknown: int


class Trial(_Frozen):
    """One trial of ``tune``, on the tuning half.

    Attributes:
        number: number of the trial; 0 is the start.
        preservation_weight: lambda, or the l2 of a null space.
        clamp: clamp of value vectors.
        learning_rate: learning rate of value vectors.
        metrics: metrics in percent; empty if the trial failed.
        seconds: time taken, in seconds.
        error: why the trial failed; ``None`` if it did not.
    """

    number: int
    preservation_weight: float
    clamp: float
    learning_rate: float
    metrics: dict[str, float | None]
    seconds: float
    error: str | None = None


class HeldOut(_Frozen):
    """Metrics in percent on the half of the records that was not used for tuning.

    Attributes:
        start: metrics of the start; empty if it fails there.
        best: metrics of the best trial; empty if it fails there.
    """

    start: dict[str, float | None]
    best: dict[str, float | None]


class TuneReport(_Frozen):
    """The outcome of ``tune``.

    Attributes:
        run_id: id of the flow run in Prefect; ``None`` in a run without Prefect.
        mlflow_run_id: id of the run in MLflow.
        trials: the trials, in order.
        best: number of the best trial.
        held_out: metrics of the start and of the best trial on the other half.
        editing: the settings that were found, in the form of the ``editing`` part of a model's YAML file.
    """

    run_id: str | None
    mlflow_run_id: str
    trials: list[Trial]
    best: int
    held_out: HeldOut
    editing: dict[str, Any]
