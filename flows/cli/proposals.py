"""Commands that propose settings: which facts to try, which layers to edit, and with which constants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from factsmith.flows.cli.common import Arguments, AsJson, complete, compose_arguments, preflight, show
from factsmith.tasks.pipeline.environment import check_writable

__all__ = ["known", "locate", "tune"]


def known(
    arguments: Arguments = None,
    preferred: Annotated[
        bool,
        typer.Option("--preferred", help="facts whose target_true is likelier than target_new"),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="write their case ids to this file, for dataset.cases=FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the facts that a model knows: target_true is its first choice at every token."""
    from factsmith.flows.configuration.composition import UNUSED_BY_LOCATE

    settings = compose_arguments(arguments, stand_ins={**UNUSED_BY_LOCATE, "trace": {}})
    if out is not None:
        check_writable(out)
    preflight(settings, dataset=True, editing=False)
    from factsmith.flows.locate import known as flow

    report = complete(flow, settings)
    cases = report.preferred if preferred else report.recalled
    if out is not None:
        out.write_text(json.dumps(cases), encoding="utf-8")
    if as_json:
        typer.echo(report.model_dump_json())
        return
    typer.echo(
        f"{settings.model.name} knows {len(report.recalled):,} of {report.facts:,} facts: target_true is its first "
        f"choice at every token.\nIt prefers target_true to target_new in {len(report.preferred):,} of them."
    )
    if out is not None:
        typer.echo(f"Use {len(cases):,} of them: dataset.cases={out}")


def locate(arguments: Arguments = None, as_json: AsJson = False) -> None:
    """Find the layers that carry a model's facts, which are the layers to edit."""
    from factsmith.flows.configuration.composition import UNUSED_BY_LOCATE

    settings = compose_arguments(arguments, stand_ins=UNUSED_BY_LOCATE)
    preflight(settings, dataset=True, editing=False)
    from factsmith.flows.locate import locate as flow

    report = complete(flow, settings)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.reporting.proposals import effects_table, location_lines
    from factsmith.flows.reporting.terminal import stages_table

    show(effects_table(report, settings), stages_table(report.stages))
    typer.echo("\n".join(location_lines(report)))


def tune(
    arguments: Arguments = None,
    trials: Annotated[int, typer.Option(min=1, help="most trials; the first one has the given settings")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="seed of the search")] = 0,
    out: Annotated[Path | None, typer.Option(help="write the settings to this YAML file, for model=FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Find lambda, clamp and learning rate on one half of the records, and judge them on the other half."""
    settings = compose_arguments(arguments)
    from factsmith.flows.tune import check_tune, on_half
    from factsmith.flows.tune import tune as flow

    check_tune(settings, out)
    preflight(on_half(settings, "tune"), dataset=True)
    report = complete(flow, settings, trials, seed, out)
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.reporting.proposals import trials_table, tuning_lines

    show(trials_table(report, settings))
    typer.echo("\n".join(tuning_lines(report, out)))
