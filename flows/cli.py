"""The command line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.artifacts.store import Store
from factsmith.flows.store_commands import store_app
from factsmith.tasks.home import embedded_services, home, scheduled_services

if TYPE_CHECKING:
    from factsmith.flows.report import Report
    from factsmith.tasks.bench import Bench
    from factsmith.tasks.settings import Settings

__all__ = ["app", "main"]

T = TypeVar("T")

# What a command needs is imported in it: most of it is heavy, and none of it may load before ``embedded_services``.

app = typer.Typer(
    name="factsmith",
    help="Correct facts inside a language model. `factsmith run` shows the whole pipeline on the model that ships.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORDS]...", help="choices and settings: model=cf-gpt2 method.batch_size=64 ..."),
]
_STOPPED = 130
"""Exit code after Ctrl-C, of shells and of Typer, which turns the interrupt into it without a word."""

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else on stdout")]


@app.command()
def run(words: Words = None, as_json: AsJson = False) -> None:
    """Precompute, edit and evaluate: the whole pipeline."""
    settings = _compose(words)
    _preflight(settings, dataset=True)
    from factsmith.flows.run import run as flow

    _report(lambda: flow(settings), settings, as_json)


@app.command()
def precompute(words: Words = None, as_json: AsJson = False) -> None:
    """Get a model ready: tokens, keys, covariance, factor."""
    settings = _compose(words)
    _preflight(settings, dataset=False)
    from factsmith.flows.precompute import precompute as flow

    _report(lambda: flow(settings), settings, as_json)


@app.command()
def edit(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FACTS] [WORDS]...", help="facts (.json, .jsonl, .csv), choices and settings"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write the edited model to")] = None,
    as_json: AsJson = False,
) -> None:
    """Write facts into a model, all those of a facts file together.

    A fact is an object with subject, prompt and target_new:
    {"subject": "Ada Lovelace", "prompt": "{} was born in", "target_new": "London"}
    """
    words = words or []
    if words and "=" not in words[0]:
        given = ["dataset=facts", f"dataset.path={words[0]}"]
        if not any(word.startswith("method.batch_size=") for word in words):
            given.append("method.batch_size=all")
        words = [*given, *words[1:]]
    settings = _compose(words)
    _preflight(settings, dataset=True, out=out)
    from factsmith.flows.edit import edit as flow

    _report(lambda: flow(settings, out), settings, as_json, out)


@app.command()
def evaluate(words: Words = None, as_json: AsJson = False) -> None:
    """Score a model before and after its facts are written."""
    settings = _compose(words)
    _preflight(settings, dataset=True)
    from factsmith.flows.evaluate import evaluate as flow

    _report(lambda: flow(settings), settings, as_json)


@app.command()
def plan(
    words: Words = None,
    precompute: Annotated[bool, typer.Option("--precompute", help="only what does not depend on facts")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do: what is cached, and what the rest would cost in FLOP, bytes and memory."""
    settings = _compose(words)
    bench = _preflight(settings, dataset=not precompute)
    from factsmith.flows.tables import plan_table
    from factsmith.tasks.planning import plan as plan_stages

    stages = plan_stages(bench, dataset=not precompute)
    if as_json:
        typer.echo(json.dumps({"stages": [asdict(stage) for stage in stages]}))
        return
    _print(plan_table(stages, settings))


@app.command()
def serve(
    words: Words = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FLOW", help="precompute, evaluate or run; repeatable")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="when to run, instead of each flow's own time")] = None,
    interval: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=1, max=10**8, help="between runs, instead of a cron")
    ] = None,
    timezone: Annotated[str, typer.Option(help="of the cron, such as Europe/Paris")] = "UTC",
    name: Annotated[str | None, typer.Option(help="of the deployments; the model's if left out")] = None,
) -> None:
    """Run flows on a schedule, and those that people start in Prefect's UI, until stopped.

    Needs a Prefect server. precompute runs every night at 2:00, evaluate every hour, run when it is asked for.
    """
    scheduled_services()
    from factsmith.flows.configuration import compose
    from factsmith.flows.schedules import When, check_server, deployments, keep_serving
    from factsmith.flows.tables import deployments_table

    settings = compose(words or [])
    served = deployments(words or [], only or [], When(cron, interval, timezone), name=name or settings.model.name)
    _preflight(settings, dataset=any(deployment.flow_name != "precompute" for deployment, _ in served))
    server = check_server()
    _print(deployments_table([(f"{one.flow_name}/{one.name}", str(when)) for one, when in served]))
    typer.echo(f"Artifacts: {home()}\nPrefect: {server.removesuffix('/api')}/deployments\nCtrl-C stops.")
    keep_serving([deployment for deployment, _ in served])
    typer.echo("factsmith: stopped, and the schedules are paused until they are served again", err=True)


@app.command()
def locate(words: Words = None, as_json: AsJson = False) -> None:
    """Find the layers that carry a model's facts: which ones to edit."""
    from factsmith.flows.configuration import UNUSED_BY_LOCATE

    settings = _compose(words, stand_ins=UNUSED_BY_LOCATE)
    _preflight(settings, dataset=True, editing=False)
    from factsmith.flows.locate import locate as flow

    report = _complete(lambda: flow(settings))
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.findings import effects_table, words_of_location
    from factsmith.flows.tables import stages_table

    _print(effects_table(report, settings), stages_table(report.stages))
    typer.echo("\n".join(words_of_location(report)))


@app.command()
def tune(
    words: Words = None,
    trials: Annotated[int, typer.Option(min=1, help="settings to try at most, those given first")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="of the search")] = 0,
    out: Annotated[Path | None, typer.Option(help="YAML file for what is found, to use as model=FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Find lambda, clamp and learning rate on half of the records, and judge them on the other half."""
    settings = _compose(words)
    from factsmith.flows.tune import check_tune, on_half
    from factsmith.flows.tune import tune as flow

    check_tune(settings, out)
    _preflight(on_half(settings, "tune"), dataset=True)
    report = _complete(lambda: flow(settings, trials, seed, out))
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.findings import trials_table, words_of_tuning

    _print(trials_table(report, settings))
    typer.echo("\n".join(words_of_tuning(report, out)))


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="folder to write the model to; a rerun goes on where it was")] = Path(
        "embedded-model"
    ),
) -> None:
    """Train the embedded model again: its tokenizer, its weights, its recall."""
    _start()
    from factsmith.tasks.embedded.training import Recipe, pretrain
    from factsmith.tasks.progress import work

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder.", got=error.strerror, remedy="choose another --out") from None
    recipe = Recipe()
    with work("pretrain", recipe.steps) as advance:
        shares = pretrain(out, recipe=recipe, advance=advance)
    worst = min(shares, key=lambda template: shares[template])
    typer.echo(f"{out}: recalls {100 * shares[worst]:.1f} % of the facts on its worst template ({worst})")


@app.command()
def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1", min=1, max=65535)] = 5000) -> None:
    """Open the MLflow UI on this machine alone."""
    embedded_services()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith("http"):
        typer.echo(f"Runs are logged to {uri}: open it in a browser.")
        return
    if not uri and not (home() / "mlflow.db").is_file():
        raise InputError(f"There are no runs in {home()} yet.", remedy="start with `factsmith run`")
    backend = uri or f"sqlite:///{home() / 'mlflow.db'}"
    _check_port(port)
    # MLflow's own job workers would be eight more processes, for nothing we use.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["server", "--backend-store-uri", backend, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    typer.echo(f"http://127.0.0.1:{port}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


@app.command()
def conf(words: Words = None, as_json: AsJson = False) -> None:
    """Show the choices there are, and what some words come to."""
    from factsmith.flows.tables import choices_table, settings_table

    settings = _compose(words)
    if as_json:
        typer.echo(settings.model_dump_json())
        return
    if not words:
        _print(choices_table())
    _print(settings_table(settings))


def main() -> None:
    """Run the command line; leaves with 0 when done, 2 for the user's input, 1 for our mistakes."""
    try:
        app()
    except FactsmithError as error:
        typer.echo(f"factsmith: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as leave:
        if isinstance(leave, SystemExit) and leave.code != _STOPPED:
            raise
        typer.echo("factsmith: stopped; the same command goes on from here", err=True)
        sys.exit(_STOPPED)


def _start() -> None:
    embedded_services()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)


def _compose(words: list[str] | None, **options: Any) -> Settings:
    _start()
    from factsmith.flows.configuration import compose

    return compose(words or [], **options)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"Port {port} of 127.0.0.1 cannot be used.", got=error.strerror, remedy="choose another with --port"
            ) from None


def _preflight(settings: Settings, *, dataset: bool, editing: bool = True, out: Path | None = None) -> Bench:
    """Look at the user's input before Prefect starts and anything is written, then make the folders it needs."""
    from factsmith.tasks.bench import Bench
    from factsmith.tasks.preflight import check_input

    bench = Bench(settings, Store(home()))
    try:
        check_input(bench, dataset=dataset, editing=editing, out=out)
        if prefect_home := os.environ.get("PREFECT_HOME"):
            Path(prefect_home).mkdir(parents=True, exist_ok=True)
    except OSError as error:  # so far only what the user named was touched: too long a name, no permission, ...
        raise InputError(f"{error.filename or 'A file'} cannot be used.", got=error.strerror) from None
    return bench


def _complete(flow: Callable[[], T]) -> T:
    """What ``flow`` gives back, or a clear word on a server that does not answer."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    # Nobody watches a run at the command line by its heartbeat, and stopping it costs a second a flow.
    try:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            return flow()
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        raise InputError(
            "Prefect's server does not answer.",
            got=f"PREFECT_API_URL={os.environ.get('PREFECT_API_URL')}",
            remedy="start the server, or unset PREFECT_API_URL to have one started for the run",
        ) from None


def _report(flow: Callable[[], Report], settings: Settings, as_json: bool, out: Path | None = None) -> None:
    report = _complete(flow)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.tables import scores_table, stages_table

    if report.metrics:
        _print(scores_table(report, settings))
    _print(stages_table(report.stages))
    if out is not None:
        typer.echo(f"Edited model: {out}")
    command = "factsmith" if shutil.which("factsmith") else sys.argv[0]
    typer.echo(f"Compare runs in the MLflow UI: {command} ui")


def _print(*tables: Any) -> None:
    from rich.console import Console

    Console().print(*tables, sep="\n")


if __name__ == "__main__":
    main()
