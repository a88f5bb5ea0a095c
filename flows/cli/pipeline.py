"""Commands that run the pipeline or a part of it, or show what it would do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import (
    Arguments,
    AsJson,
    From,
    ReportFile,
    check_report_file,
    check_runs,
    complete,
    compose_arguments,
    is_setting,
    preflight,
    show,
    show_report,
    start,
    write_report,
)
from factsmith.flows.cli.exports import Public, PushTo, Rank, To, check_hub, check_target, show_export
from factsmith.tasks.pipeline.environment import home

if TYPE_CHECKING:
    from factsmith.tasks.planning.settings import Settings

__all__ = ["edit", "evaluate", "plan", "precompute", "run"]


FactsAndArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FACTS] [SETTINGS]...", help="facts (.json, .jsonl, .csv), choices and settings"),
]


def run(
    arguments: Arguments = None, mirror: From = None, report_file: ReportFile = None, as_json: AsJson = False
) -> None:
    """Precompute, edit and evaluate: the whole pipeline."""
    settings = compose_arguments(arguments, mirror)
    check_report_file(report_file)
    preflight(settings, dataset=True)
    from factsmith.flows.run import run as flow

    report = complete(flow, settings)
    write_report(report.mlflow_run_id, report_file)
    show_report(report, settings, as_json, report_file=report_file)


def precompute(
    arguments: Arguments = None,
    report: Annotated[
        bool, typer.Option("--report", help="measure each layer's covariance: held-out leverage, rank, spectrum")
    ] = False,
    mirror: From = None,
    as_json: AsJson = False,
) -> None:
    """Prepare a model for editing: tokens, keys, covariance, factor."""
    settings = _compose_without_facts(arguments, mirror, *(["corpus.auto.held_out"] if report else []))
    checked = preflight(settings, dataset=False)
    if report:
        from factsmith.flows.reporting.conditioning import check_report

        check_report(checked)
    from factsmith.flows.precompute import precompute as flow

    show_report(complete(flow, settings, report), settings, as_json)


def edit(
    arguments: FactsAndArguments = None,
    out: Annotated[Path | None, typer.Option(help="folder to write the edited model to")] = None,
    to: To = "checkpoint",
    mirror: From = None,
    rank: Rank = None,
    push: PushTo = None,
    public: Public = False,
    report_file: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """Write facts into a model. The facts of a file are written together.

    A fact is an object with subject, prompt and target_new:
    {"subject": "Ada Lovelace", "prompt": "{} was born in", "target_new": "London"}
    """
    from factsmith.flows.configuration.composition import UNUSED_WITHOUT_SCORES

    settings = compose_arguments(_with_facts(arguments), mirror, stand_ins=UNUSED_WITHOUT_SCORES)
    check_report_file(report_file)
    from factsmith.tasks.export.form import load_form

    check_target(out, to, rank, push, public=public)
    check_hub(push, public=public)
    preflight(settings, dataset=True, out=out, form=load_form(to), truncated=rank is not None)
    from factsmith.flows.edit import edit as flow

    report = complete(flow, settings, out, to, rank, push, public)
    write_report(report.mlflow_run_id, report_file)
    is_model = (to, rank, push) == ("checkpoint", None, None)
    show_report(report, settings, as_json, out if is_model else None, report_file)
    if not as_json and not is_model and report.export is not None:
        show_export(report.export)


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN | FACTS] [SETTINGS]...", help="an earlier run, or facts, choices and settings"),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAMES", help="metric families to score: counterfact,generation,...")
    ] = None,
    report_file: ReportFile = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", metavar="NAMES", help="tasks of lm-eval to run: arc_easy,hellaswag,...")
    ] = None,
    lm_eval_limit: Annotated[int | None, typer.Option(min=1, help="most documents of each task of lm-eval")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a model before and after its facts are written. Existing scores are reused.

    RUN is the id of an earlier run (`factsmith runs` lists them) or `latest`. Its stored edits are then scored.
    """
    given = list(arguments or [])
    if metrics is not None:
        given.append(f"dataset.metrics=[{metrics}]")
    if lm_eval is not None:
        given.append(f"abilities.lm_eval.tasks=[{lm_eval}]")
    if lm_eval_limit is not None:
        given.append(f"abilities.lm_eval.limit={lm_eval_limit}")
    run = given.pop(0) if given and _is_run(given[0]) else None
    past = None
    if run is None:
        settings = compose_arguments(_with_facts(given))
    else:
        check_runs()
        from factsmith.flows.configuration.composition import compose_again
        from factsmith.tasks.tracking.runs import find_run

        past = find_run(home(), run)
        settings = compose_again(past.content, given)
    check_report_file(report_file)
    preflight(settings, dataset=True, past=past)
    from factsmith.flows.evaluate import evaluate as flow

    report = complete(flow, settings, past.id if past else None)
    write_report(report.mlflow_run_id, report_file)
    show_report(report, settings, as_json, report_file=report_file)


def _is_run(argument: str) -> bool:
    """Whether an argument names a run, and not a file of facts or a setting."""
    return not is_setting(argument) and not Path(argument).suffix and not Path(argument).exists()


def plan(
    arguments: FactsAndArguments = None,
    precompute: Annotated[bool, typer.Option("--precompute", help="only stages that do not depend on facts")] = False,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="predict the time on so many workers, each with the model")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="the GPU of each worker: a100, h100, h200, b200, l40s; without, this machine")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="price of a GPU (or of this machine) for an hour")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="run these stages on little first, to learn how fast this machine is")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: what is cached, and what the rest would cost in FLOP, bytes, memory and time.

    Settings with several values, separated by commas, are a sweep: what its cells share is counted once. The time is
    predicted from rates that --measure has measured on this machine, or from those that are published for a --gpu.
    """
    start()
    given = _with_facts(arguments)
    settings = _settings_of_one_run(given, _compose_without_facts if precompute else compose_arguments)
    if measure and (gpu is not None or settings is None):
        raise InputError(
            "--measure runs one run's stages on this machine.",
            got="a sweep" if settings is None else f"--gpu {gpu}",
            remedy="measure with the settings of one run and without --gpu; predictions of sweeps then use the rates",
        )
    from factsmith.flows.sweeps.plans import Wanted, plan_run, plan_sweep

    wanted = Wanted(nodes, gpu, price)
    if settings is None:
        found = plan_sweep(given, wanted, dataset=not precompute)
    else:
        if settings.runtime.mirror is not None:
            raise InputError(
                "A plan does not look elsewhere for statistics.",
                got=f"runtime.mirror={settings.runtime.mirror}",
                remedy="leave it out; `factsmith store pull KIND URL --dry-run` shows what is there",
            )
        checked = preflight(settings, dataset=not precompute)
        if measure:
            from factsmith.flows.measure import measure as measure_rates

            measure_rates(settings, dataset=not precompute)
        found = plan_run(checked, wanted, dataset=not precompute)
    if as_json:
        typer.echo(found.json())
        return
    show(found.table())


def _settings_of_one_run(given: list[str], compose: Callable[[list[str]], Settings]) -> Settings | None:
    """The settings of a run; ``None`` if the arguments are those of a sweep.

    A value with commas may be one of a run, such as ``runtime.devices=cuda:0,cuda:1``.
    """
    from factsmith.flows.configuration.grid import varies

    try:
        return compose(given)
    except InputError:
        if varies(given):
            return None
        raise


def _compose_without_facts(arguments: list[str] | None, mirror: str | None = None, *reads: str) -> Settings:
    """The settings of a run that prepares a model. There need not be facts yet, and arguments may name some too."""
    from factsmith.flows.configuration.composition import UNUSED_WITHOUT_SCORES

    unread = {**UNUSED_WITHOUT_SCORES, "dataset": {"path": None}}
    return compose_arguments(arguments, mirror, stand_ins=unread, reads=["dataset", *reads])


def _with_facts(arguments: list[str] | None) -> list[str]:
    """The arguments, with a leading facts file turned into settings. Its facts are written together."""
    if not arguments or is_setting(arguments[0]):
        return arguments or []
    given = ["dataset=facts", f"dataset.path={arguments[0]}"]
    if not any(argument.startswith("method.batch_size=") for argument in arguments):
        given.append("method.batch_size=all")
    return [*given, *arguments[1:]]
