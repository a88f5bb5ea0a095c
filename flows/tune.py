"""Flow ``tune``: find lambda, clamp and learning rate on one half of the records, and judge them on the other."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from prefect import flow

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.flows.configuration.choices import choice_names
from factsmith.flows.reporting.page import open_page
from factsmith.flows.reporting.reports import SCORES, HeldOut, Trial, TuneReport
from factsmith.flows.run import run_part
from factsmith.tasks.locate.search import Point, Search
from factsmith.tasks.model.embedded.world import Split
from factsmith.tasks.model.settings import EMBEDDED
from factsmith.tasks.pipeline.environment import check_writable
from factsmith.tasks.pipeline.page import ProgressArtifacts, subflow
from factsmith.tasks.pipeline.progress import progress, published_by
from factsmith.tasks.planning.home import open_store
from factsmith.tasks.planning.preflight import check_input
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings

__all__ = ["check_tune", "on_half", "settings_at", "tune"]

_HEADER = "# Found by `factsmith tune`"


def on_half(settings: Settings, split: Split) -> Settings:
    """The settings, on one half of the dataset."""
    return settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"split": split})})


def settings_at(start: Settings, point: Point) -> Settings:
    """``start`` with lambda, clamp and learning rate moved to ``point``, rounded to three digits."""
    method, value = start.method, start.method.value
    if point == Point():
        return start
    value = value.model_copy(
        update={
            "clamp": _rounded(value.clamp * 2 ** (point.clamp / 2)),
            "learning_rate": _rounded(value.learning_rate * 2 ** (point.rate / 2)),
        }
    )
    weight = _rounded(method.weight * 10 ** (point.weight / 2))
    return start.model_copy(update={"method": method.with_weight(weight).model_copy(update={"value": value})})


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")


def check_tune(settings: Settings, out: Path | None = None) -> None:
    """Check everything that the user gave before anything is written.

    Args:
        settings: the settings, resolved.
        out: YAML file for the settings that are found.

    Raises:
        InputError: too few records, records that cannot be scored, or a file that cannot be written.
    """
    if not settings.method.solves:
        raise InputError(
            f"method={settings.method.name} has no lambda and no clamp to search for.",
            expected="a method that solves the equation",
            remedy="try values with a sweep, such as `factsmith sweep method.training.learning_rate=1e-4,5e-4`",
        )
    tuning = Run(on_half(settings, "tune"), open_store())
    for run in (tuning, tuning.variant(on_half(settings, "test"))):
        check_input(run, dataset=True)
        split = run.settings.dataset.split
        records = [record for record in run.batches.records if record.request.target_true is not None]
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
        raise InputError(f"{out} exists already.", expected="a new file, or one that an earlier `tune` wrote")
    check_writable(out)


@flow(name="tune")
def tune(settings: Settings, trials: int = 12, seed: int = 0, out: Path | None = None) -> TuneReport:
    """Try settings on the tuning half, and judge the start and the best of them on the other half.

    A trial is an ordinary run. Its artifacts are kept, and trials that differ only in lambda share value vectors.

    Args:
        settings: the settings, resolved. The search starts from their lambda, clamp and learning rate.
        trials: most trials, including the start.
        seed: seed of the search.
        out: YAML file for the settings that are found.

    Raises:
        InputError: the input cannot be used, or every trial failed.
    """
    check_tune(settings, out)
    search = Search(trials, seed)
    done: dict[Point, Trial] = {}
    with open_page(on_half(settings, "tune"), "tune") as run:
        tracker = run.workspace.tracker
        with published_by(ProgressArtifacts()), progress("tune", trials) as advance:
            while point := search.propose():
                done[point] = _try(run, settings_at(run.settings, point), len(done))
                search.tell(point, done[point].metrics.get("S"))
                advance(1)
        if all(trial.error for trial in done.values()):
            raise InputError(f"All {len(done)} trials failed.", got=done[Point()].error)
        start, best = done[Point()], done[search.best]
        before = after = _judge(run, settings, "held-out start")
        if search.best != Point():
            after = _judge(run, settings_at(settings, search.best), "held-out best")
        held_out = HeldOut(start=before, best=after)
        for name, metrics in (
            ("tune/start", start.metrics),
            ("tune/best", best.metrics),
            ("held_out/start", held_out.start),
            ("held_out/best", held_out.best),
        ):
            tracker.metrics({f"{name}/{score}": metrics.get(score) for score in SCORES})
        report = TuneReport(
            run_id=run.workspace.flow_run,
            mlflow_run_id=tracker.run_id,
            trials=list(done.values()),
            best=best.number,
            held_out=held_out,
            editing=_editing(settings_at(settings, search.best)),
        )
        tracker.client.log_dict(tracker.run_id, report.editing, "editing.yaml")
    if out is not None:
        out.write_text(_editing_yaml(settings, report), encoding="utf-8")
    return report


def _try(run: Run, settings: Settings, number: int) -> Trial:
    started = time.perf_counter()
    error, metrics = None, {}
    try:
        metrics = _scores(run, settings, f"trial {number}")
    except FactsmithError as failure:
        error = str(failure)
    value = settings.method.value
    return Trial(
        number=number,
        preservation_weight=settings.method.weight,
        clamp=value.clamp,
        learning_rate=value.learning_rate,
        metrics=metrics,
        seconds=round(time.perf_counter() - started, 3),
        error=error,
    )


def _judge(run: Run, settings: Settings, name: str) -> dict[str, float | None]:
    try:
        return _scores(run, on_half(settings, "test"), name)
    except FactsmithError:
        return {}


def _scores(run: Run, settings: Settings, name: str) -> dict[str, float | None]:
    """The metrics after the edit that ``settings`` describe, from a run that is a part of ``run``."""
    part, parent = run.variant(settings), run.workspace.tracker.run_id
    trial = partial(run_part, part, name, flow="trial", parent=parent)
    report, _ = subflow(run.workspace, "trial", trial, flow_run_name=name)
    return report.metrics["after"]


def _editing(settings: Settings) -> dict[str, Any]:
    method = settings.method
    value = method.value.model_dump()
    null_space = method.preservation == "null_space"
    return {
        "layers": list(method.layers),
        **({"null_space": {"l2": method.weight}} if null_space else {"preservation_weight": method.weight}),
        "value": {name: value[name] for name in ("steps", "learning_rate", "clamp")},
    }


def _editing_yaml(settings: Settings, report: TuneReport) -> str:
    """A model's YAML with the settings that were found. Its ``editing`` part can be copied into another YAML."""
    model = settings.model
    content: dict[str, Any] = {"name": model.name, "path": _absolute(model.path)}
    if model.revision is not None:
        content["revision"] = model.revision
    if model.dtype != "auto":
        content["dtype"] = model.dtype
    names = {"corpus": settings.corpus.name, "dataset": settings.dataset.name}
    known = {group: name for group, name in names.items() if name in choice_names(group)}
    if known:
        content["defaults"] = known
    if settings.method.value.site == "block" and "null_space" not in report.editing:
        content["editing"] = report.editing
    else:
        # A value at the MLP's output is at another place, and a null space has no lambda: these settings do not suit
        # other methods.
        content["methods"] = {settings.method.name: report.editing}
    before, after = report.held_out.start.get("S"), report.held_out.best.get("S")
    shown = ["-" if one is None else f"{one:.1f}" for one in (before, after)]
    header = (
        f"{_HEADER} in {len(report.trials)} trials with {settings.method.name}: S {shown[1]} on held-out records, "
        f"{shown[0]} before."
    )
    return f"{header}\n{OmegaConf.to_yaml(OmegaConf.create(content))}"


def _absolute(path: str) -> str:
    local = Path(path).expanduser()
    return str(local.resolve()) if path != EMBEDDED and local.exists() else path
