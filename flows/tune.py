"""Flow ``tune``: lambda, clamp and learning rate for a model, found on one half of the records, judged on the other."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from prefect import Flow, flow
from pydantic import BaseModel, ConfigDict

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import choices
from factsmith.flows.trial import score_trial
from factsmith.tasks.locate.search import Point, Search, settings_at
from factsmith.tasks.model.embedded.world import Split
from factsmith.tasks.pipeline.paths import home
from factsmith.tasks.pipeline.progress import work
from factsmith.tasks.pipeline.workspace import Bench
from factsmith.tasks.planning.preflight import check_input, open_bench
from factsmith.tasks.planning.settings import EMBEDDED, Settings

__all__ = ["SCORES", "HeldOut", "Trial", "TuneReport", "check_tune", "on_half", "tune"]

SCORES = ("ES", "PS", "NS", "S")

_HEADER = "# Found by `factsmith tune`"


class Trial(BaseModel):
    """One try on the tuning half.

    Attributes:
        number: from 0, which is the start.
        preservation_weight: lambda.
        clamp: of value vectors.
        learning_rate: of value vectors.
        metrics: in percent; empty if it failed.
        seconds: it took.
        error: why it failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    preservation_weight: float
    clamp: float
    learning_rate: float
    metrics: dict[str, float | None]
    seconds: float
    error: str | None = None


class HeldOut(BaseModel):
    """Metrics on the half that nothing was chosen on, in percent; those of settings that fail there are empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: dict[str, float | None]
    best: dict[str, float | None]


class TuneReport(BaseModel):
    """The outcome of ``tune``, as ``--json`` prints it.

    Attributes:
        run_id: of the flow run in Prefect.
        mlflow_run_id: of the parent run in MLflow.
        trials: in their order.
        best: number of the best trial.
        held_out: what the start and the best come to on the other half.
        editing: the settings found, as a model's YAML holds them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    mlflow_run_id: str
    trials: list[Trial]
    best: int
    held_out: HeldOut
    editing: dict[str, Any]


def on_half(settings: Settings, split: Split) -> Settings:
    """The settings, on one half of the dataset."""
    return settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"split": split})})


def check_tune(settings: Settings, out: Path | None = None) -> None:
    """Look at everything the user gave before anything is written.

    Args:
        settings: resolved.
        out: YAML file for the settings found.

    Raises:
        InputError: too few records, records that cannot be scored, or a file that cannot be written.
    """
    tuning = Bench(on_half(settings, "tune"), Store(home()))
    for bench in (tuning, tuning.variant(on_half(settings, "test"))):
        check_input(bench, dataset=True)
        split = bench.settings.dataset.split
        records = [record for batch in bench.batches for record in batch if record.request.target_true is not None]
        for kind in ("paraphrase", "neighborhood"):
            if not any(record.prompts.get(kind) for record in records):
                raise InputError(
                    f"dataset={settings.dataset.name} cannot tell good settings from bad ones.",
                    got=f"no record with target_true and {kind} prompts in its half dataset.split={split}",
                    expected="records with target_true, paraphrase_prompts and neighborhood_prompts",
                )
    if out is None:
        return
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"{out} cannot be used as a choice of model.", expected="a name that ends in .yaml")
    if out.exists() and not (out.is_file() and out.read_text(errors="replace").startswith(_HEADER)):
        raise InputError(f"{out} is there already.", expected="a new file, or one that an earlier `tune` wrote")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"{out} cannot be written.", got=f"{out.absolute().parent} is no folder one may write to")


@flow(name="tune")
def tune(settings: Settings, trials: int = 12, seed: int = 0, out: Path | None = None) -> TuneReport:
    """Try settings on the tuning half, and judge the best of them and the start on the other.

    A trial is an ordinary run: its artifacts are kept, and value vectors are shared by the lambdas tried with them.

    Args:
        settings: the run, resolved; the search starts from its lambda, clamp and learning rate.
        trials: at most, the start among them.
        seed: of the search.
        out: YAML file for the settings found.

    Raises:
        InputError: the input cannot be used, or every trial failed.
    """
    from prefect.runtime import flow_run

    check_tune(settings, out)
    search = Search(trials, seed)
    done: dict[Point, Trial] = {}
    with open_bench(on_half(settings, "tune"), "tune") as bench:
        with work("tune", trials) as advance:
            while point := search.propose():
                done[point] = _try(bench, settings_at(bench.settings, point), len(done))
                search.tell(point, done[point].metrics.get("S"))
                advance(1)
        if all(trial.error for trial in done.values()):
            raise InputError(f"All {len(done)} trials failed.", got=done[Point()].error)
        start, best = done[Point()], done[search.best]
        before = after = _judge(bench, settings, "held-out start")
        if search.best != Point():
            after = _judge(bench, settings_at(settings, search.best), "held-out best")
        held_out = HeldOut(start=before, best=after)
        for name, metrics in (
            ("tune/start", start.metrics),
            ("tune/best", best.metrics),
            ("held_out/start", held_out.start),
            ("held_out/best", held_out.best),
        ):
            bench.tracker.metrics({f"{name}/{score}": metrics.get(score) for score in SCORES})
        report = TuneReport(
            run_id=str(flow_run.id),
            mlflow_run_id=bench.tracker.run_id,
            trials=list(done.values()),
            best=best.number,
            held_out=held_out,
            editing=_editing(settings_at(settings, search.best)),
        )
        bench.tracker.client.log_dict(bench.tracker.run_id, report.editing, "editing.yaml")
    if out is not None:
        out.write_text(_editing_yaml(settings, report), encoding="utf-8")
    return report


def _try(bench: Bench, settings: Settings, number: int) -> Trial:
    began = time.perf_counter()
    error, metrics = None, {}
    try:
        metrics = _scores(bench, settings, f"trial {number}")
    except FactsmithError as failure:
        error = str(failure)
    value = settings.method.value
    return Trial(
        number=number,
        preservation_weight=settings.method.preservation_weight,
        clamp=value.clamp,
        learning_rate=value.learning_rate,
        metrics=metrics,
        seconds=round(time.perf_counter() - began, 3),
        error=error,
    )


def _judge(bench: Bench, settings: Settings, name: str) -> dict[str, float | None]:
    try:
        return _scores(bench, on_half(settings, "test"), name)
    except FactsmithError:
        return {}


def _scores(bench: Bench, settings: Settings, name: str) -> dict[str, float | None]:
    """Metrics after the edit that ``settings`` describe, in a run of its own below the bench's."""
    variant = bench.variant(settings)
    trial = Flow(lambda: score_trial(variant, name, flow="trial", parent=bench.tracker.run_id), name="trial")
    scores, _, _ = trial()
    return scores.after


def _editing(settings: Settings) -> dict[str, Any]:
    method = settings.method
    value = method.value.model_dump()
    return {
        "layers": list(method.layers),
        "preservation_weight": method.preservation_weight,
        "value": {name: value[name] for name in ("steps", "learning_rate", "clamp")},
    }


def _editing_yaml(settings: Settings, report: TuneReport) -> str:
    """A model's YAML with the settings found; what it holds of editing can be pasted into another."""
    model = settings.model
    content: dict[str, Any] = {"name": model.name, "path": _absolute(model.path)}
    if model.revision is not None:
        content["revision"] = model.revision
    if model.dtype != "float32":
        content["dtype"] = model.dtype
    names = {"corpus": settings.corpus.name, "dataset": settings.dataset.name}
    known = {group: name for group, name in names.items() if name in choices(group)}
    if known:
        content["defaults"] = known
    if settings.method.value.site == "block":
        content["editing"] = report.editing
    else:  # one layer, and values of another place: not what other methods want
        content["methods"] = {settings.method.name: report.editing}
    before, after = report.held_out.start.get("S"), report.held_out.best.get("S")
    told = ["-" if one is None else f"{one:.1f}" for one in (before, after)]
    header = (
        f"{_HEADER} in {len(report.trials)} trials with {settings.method.name}: S {told[1]} on held-out records, "
        f"{told[0]} before."
    )
    return f"{header}\n{OmegaConf.to_yaml(OmegaConf.create(content))}"


def _absolute(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if path != EMBEDDED and folder.is_dir() else path
