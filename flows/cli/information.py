"""Commands about Factsmith itself: its choices and settings, and the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.cli.common import AsJson, compose_arguments, show, start

__all__ = ["conf", "pretrain"]


def conf(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION] [SETTINGS]...", help="method, corpus, ...; then choices and settings"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show all choices, and all settings with their meanings and the values that the arguments give them.

    SECTION shows one part of them: `conf choices`, `conf method`, `conf method.value`.
    """
    from factsmith.flows.configuration.keys import sections
    from factsmith.flows.reporting.terminal import choices_table, settings_table

    given = list(arguments or [])
    section = given.pop(0) if given and "=" not in given[0] else None
    if section is not None and section not in (known := {"choices", *sections()}):
        raise InputError(f"There is no section {section!r}.", remedy=closest(section, known))
    settings = compose_arguments(given)
    if as_json:
        typer.echo(settings.model_dump_json())
        return
    if section == "choices" or not (section or given):
        show(choices_table())
    if section != "choices":
        show(settings_table(settings, section))


def pretrain(
    out: Annotated[Path, typer.Option(help="folder to write the model to; a rerun continues from its checkpoint")] = (
        Path("embedded-model")
    ),
) -> None:
    """Train the embedded model and its tokenizer again, and measure which facts it recalls."""
    start()
    from factsmith.tasks.model.embedded.training import Recipe, pretrain
    from factsmith.tasks.pipeline.progress import progress

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {out} cannot be created.", got=error.strerror, remedy="choose another --out"
        ) from None
    recipe = Recipe()
    with progress("pretrain", recipe.steps) as advance:
        shares = pretrain(out, recipe=recipe, advance=advance)
    worst = min(shares, key=lambda template: shares[template])
    typer.echo(f"{out}: recalls {100 * shares[worst]:.1f} % of the facts on its worst template ({worst})")
