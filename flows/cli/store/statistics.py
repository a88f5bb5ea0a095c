"""``factsmith import-stats`` and ``export-stats``: C0 from and for other tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import Arguments, AsJson, check_runs, compose_arguments, is_setting, start
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.planning.home import open_store

if TYPE_CHECKING:
    from factsmith.tasks.planning.run import Run

__all__ = ["export_stats", "import_stats"]


def import_stats(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE.npz... [SETTINGS]...", help="files of second moments, and model=...")
    ],
    layer: Annotated[int | None, typer.Option(min=0, help="layer of the file, in place of that in its name")] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the statistics; by default the corpus in the files' path")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import C0 that the code of ROME, MEMIT or EasyEdit has made: MODEL/CORPUS_stats/MODULE_float32_mom2_SAMPLES.npz.

    `factsmith run model=... corpus=imported` then uses it, with any method. Without model=..., the model is the choice
    that the path names.
    """
    files = [Path(one).expanduser() for one in arguments if not is_setting(one)]
    settings = [one for one in arguments if is_setting(one)]
    if files and not any(one.startswith(("model=", "model.path=")) for one in settings):
        settings.append(f"model={_model_in(files[0])}")
    run = _run_of_model(settings)
    from factsmith.tasks.planning.statistics import import_statistics

    found = import_statistics(run, files, layer=layer, name=name)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    for one in found:
        typer.echo(
            f"layer {one.layer} of {one.model}: C0 of {one.tokens:,} tokens, {'imported' if one.new else 'there'} as "
            f"{one.name} ({one.address[:23]})"
        )
    layers = ",".join(str(one.layer) for one in found)
    typer.echo(f"Use it: factsmith edit FACTS {' '.join(settings)} corpus=imported 'method.layers=[{layers}]'")


def export_stats(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN | covariance/...", help="an earlier run, `latest`, or C0 as `store ls` shows it"),
    ],
    out: Annotated[Path, typer.Option(help="folder of statistics of the other tool, such as data/stats")],
    arguments: Arguments = None,
    corpus: Annotated[str, typer.Option(help="corpus in the path, mom2_dataset of the other tool")] = "wikipedia",
    samples: Annotated[
        int,
        typer.Option(min=1, help="documents in the path, mom2_n_samples of the other tool; not tokens"),
    ] = 100_000,
    model_name: Annotated[
        str | None, typer.Option(help="model in the path; by default the hub id with _ for /, as memit has it")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write C0 as files that the code of ROME, MEMIT and EasyEdit reads. It is rounded to float32.

    These tools look for a file by its path. EasyEdit's path has the last part of the hub id: --model-name gpt-j-6b. C0
    named by its address needs model=..., which names the modules.
    """
    if "/" in name:
        run, addresses = _run_of_model(arguments or []), [name]
    else:
        run, addresses = _run_and_c0(name, arguments or [])
    from factsmith.tasks.planning.statistics import export_statistics

    found = export_statistics(run, addresses, out, corpus=corpus, samples=samples, model_name=model_name)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    for one in found:
        typer.echo(f"layer {one.layer}: C0 of {one.tokens:,} tokens in {one.file}")


def _run_of_model(arguments: Sequence[str]) -> Run:
    """A run of which only the model is read."""
    from factsmith.flows.configuration.composition import UNUSED_BUT_THE_MODEL

    settings = compose_arguments(list(arguments), stand_ins=UNUSED_BUT_THE_MODEL)
    from factsmith.tasks.planning.run import Run

    return Run(settings, open_store())


def _run_and_c0(name: str, arguments: Sequence[str]) -> tuple[Run, list[str]]:
    """An earlier run, and the address of the C0 that it used.

    Raises:
        InputError: there is no such run, or it used none.
    """
    if arguments:
        raise InputError(
            f"{arguments[0]} would have no effect: the run says which model it is.",
            got=f"run {name}",
            remedy="leave it out",
        )
    check_runs()
    start()
    from factsmith.flows.configuration.composition import past_settings
    from factsmith.flows.exports.choice import find_source
    from factsmith.tasks.planning.run import Run

    past = find_source(home(), name).run
    if (address := past.stages.get("covariance")) is None:
        raise InputError(
            f"Run {past.id[:8]} used no C0.",
            got=f"stages {', '.join(past.stages) or 'none'}",
            expected="a run whose method uses C0, such as method=memit",
        )
    return Run(past_settings(past), open_store()), [address]


def _model_in(path: Path) -> str:
    """The choice of model that the path of a file names.

    Raises:
        InputError: it names none.
    """
    from factsmith.flows.configuration.choices import choice_names, load_choice
    from factsmith.tasks.covariance.second_moments import Origin

    named = (Origin.of(path).model or "").lower()
    for choice in choice_names("model"):
        hub = str(load_choice("model", choice)[1]._get_node("path")).lower()
        if named in {choice, hub.replace("/", "_"), hub.rpartition("/")[2]}:
            return choice
    raise InputError(
        f"The model of {path} is not known.",
        got=f"{named!r} in its path" if named else "no model in its path",
        remedy="give model=... (`factsmith conf` lists them), or model=local model.path=FOLDER",
    )
