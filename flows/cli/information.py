"""Commands about Factsmith itself: its choices and settings, and the model that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, Words, compose_words, show, start

__all__ = ["conf", "pretrain"]


def conf(words: Words = None, as_json: AsJson = False) -> None:
    """Show the choices there are, and what some words come to."""
    from factsmith.flows.reporting.terminal import choices_table, settings_table

    settings = compose_words(words)
    if as_json:
        typer.echo(settings.model_dump_json())
        return
    if not words:
        show(choices_table())
    show(settings_table(settings))


def pretrain(
    out: Annotated[Path, typer.Option(help="folder to write the model to; a rerun goes on where it was")] = Path(
        "embedded-model"
    ),
) -> None:
    """Train the embedded model again: its tokenizer, its weights, its recall."""
    start()
    from factsmith.tasks.model.embedded.training import Recipe, pretrain
    from factsmith.tasks.pipeline.progress import work

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder.", got=error.strerror, remedy="choose another --out") from None
    recipe = Recipe()
    with work("pretrain", recipe.steps) as advance:
        shares = pretrain(out, recipe=recipe, advance=advance)
    worst = min(shares, key=lambda template: shares[template])
    typer.echo(f"{out}: recalls {100 * shares[worst]:.1f} % of the facts on its worst template ({worst})")
