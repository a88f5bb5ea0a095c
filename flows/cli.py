"""The command line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from factsmith.artifacts.errors import FactsmithError, InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.home import embedded_services, home

if TYPE_CHECKING:
    from factsmith.flows.report import Report
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
store_app = typer.Typer(help="Look at the artifact store.", no_args_is_help=True)
app.add_typer(store_app, name="store")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORDS]...", help="choices and settings: model=cf-gpt2 method.batch_size=64 ..."),
]
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
        typer.Argument(metavar="[FACTS] [WORDS]...", help="a file of facts (.json, .jsonl), choices and settings"),
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

    recipe = Recipe()
    with work("pretrain", recipe.steps) as advance:
        shares = pretrain(out, recipe=recipe, advance=advance)
    worst = min(shares, key=lambda template: shares[template])
    typer.echo(f"{out}: recalls {100 * shares[worst]:.1f} % of the facts on its worst template ({worst})")


@app.command()
def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000) -> None:
    """Open the MLflow UI on this machine alone."""
    embedded_services()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith("http"):
        typer.echo(f"Runs are logged to {uri}: open it in a browser.")
        return
    if not uri and not (home() / "mlflow.db").is_file():
        raise InputError(f"There are no runs in {home()} yet.", remedy="start with `factsmith run`")
    backend = uri or f"sqlite:///{home() / 'mlflow.db'}"
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


@store_app.command("ls")
def store_ls(as_json: AsJson = False) -> None:
    """List the artifacts."""
    from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
    from factsmith.flows.tables import store_table

    store = Store(home())
    manifests, damaged = [], []
    for path in store.all_paths():
        try:
            manifests.append(Manifest.load(path / MANIFEST_NAME))
        except FactsmithError:
            damaged.append(path)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json", exclude={"files", "recipe"}) for one in manifests]))
    else:
        _print(store_table(manifests))
    for path in damaged:
        typer.echo(f"{path}: no manifest that can be read", err=True)


@store_app.command("show")
def store_show(address: Annotated[str, typer.Argument(help="kind/digest or digest, as `store ls` shows it")]) -> None:
    """Print the manifest of an artifact, or of all artifacts of a series."""
    from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest

    manifests = [Manifest.load(path / MANIFEST_NAME).model_dump(mode="json") for path in Store(home()).resolve(address)]
    typer.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, indent=1, ensure_ascii=False))


@store_app.command("verify")
def store_verify(
    address: Annotated[str | None, typer.Argument(help="what to read; everything if it is left out")] = None,
) -> None:
    """Read every byte again and name what is not as it was written."""
    from factsmith.tasks.progress import work

    store = Store(home())
    paths = store.resolve(address) if address else store.all_paths()
    problems = []
    with work("verify", len(paths)) as advance:
        for path in paths:
            problems += store.verify(path)
            advance(1)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise FactsmithError(
            f"{len(problems)} damaged files in {len(paths)} artifacts.",
            remedy="run the flow again: what is damaged is set aside and built anew",
        )
    typer.echo(f"{len(paths)} artifacts, every byte as it was written")


def main() -> None:
    """Run the command line; leaves with 0 when done, 2 for the user's input, 1 for our mistakes."""
    try:
        app()
    except FactsmithError as error:
        typer.echo(f"factsmith: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("factsmith: stopped; the same command goes on from here", err=True)
        sys.exit(130)


def _start() -> None:
    embedded_services()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("factsmith").setLevel(logging.INFO)


def _compose(words: list[str] | None, **options: Any) -> Settings:
    _start()
    from factsmith.flows.configuration import compose

    return compose(words or [], **options)


def _preflight(settings: Settings, *, dataset: bool, editing: bool = True, out: Path | None = None) -> None:
    """Look at the user's input before Prefect starts and anything is written, then make the folders it needs."""
    from factsmith.tasks.bench import Bench

    Bench(settings, Store(home())).check(dataset=dataset, editing=editing, out=out)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


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
