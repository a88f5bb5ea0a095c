"""``factsmith ask``: prompts for the unedited and the edited model, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.flows.cli.common import AsJson, check_runs, model_settings, names_run, show, start
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.planning.home import open_store

if TYPE_CHECKING:
    from rich.table import Table

    from factsmith.tasks.ask.replies import Reply
    from factsmith.tasks.edit.edit import Edit
    from factsmith.tasks.planning.run import Run

__all__ = ["ask"]

_SETTING = re.compile(r"(model|runtime)\.[a-z_.]+=.*", re.DOTALL)


def ask(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="an earlier run, or a model: the name of a choice, a folder, a GGUF file, a hub id",
        ),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]... [SETTINGS]...", help="prompts, and settings such as runtime.device=cuda"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="more prompts: one in each line, or a JSON list (.json)"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="ask each prompt as a user of the model's chat template")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="which of several independent batches; of a sequence, its first N batches"
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="most tokens of a continuation")] = 24,
    likeliest: Annotated[int, typer.Option(min=1, help="how many of the likeliest next tokens to show")] = 3,
    as_json: AsJson = False,
) -> None:
    """Ask the unedited and the edited model, and show how both continue.

    RUN is the id of an earlier run (`factsmith runs` lists them) or `latest`. A MODEL is asked as it is, or with and
    without its memory if `factsmith edit --out` wrote one. Continuations are the model's first choices.
    """
    start()
    settings = [one for one in prompts or [] if _SETTING.fullmatch(one)]
    asked = [one for one in prompts or [] if one not in settings] + (_read(file) if file else [])
    if not asked:
        raise InputError("There is nothing to ask.", expected="a prompt, or --prompts FILE")
    store = open_store()
    models = _opened(store, target, settings, batch)
    with store.in_use():
        found = models.replies(asked, chat=chat, tokens=tokens, likeliest=likeliest)
    if as_json:
        answers = [
            {"prompt": prompt, **{name: asdict(its[place]) for name, its in found.items()}}
            for place, prompt in enumerate(asked)
        ]
        typer.echo(json.dumps({"model": models.run.model.name, "edit": models.edit_name, "answers": answers}))
        return
    for place, prompt in enumerate(asked):
        show(prompt, _table({name: its[place] for name, its in found.items()}))


@dataclass(frozen=True)
class _Models:
    """The models to ask.

    Attributes:
        run: opens the unedited model.
        edit: what makes it the edited model; ``None`` if there is one model only.
        edit_name: name of the edit, if it is in the store.
    """

    run: Run
    edit: Edit | None = None
    edit_name: str | None = None

    def replies(self, prompts: Sequence[str], *, chat: bool, **how: Any) -> dict[str, list[Reply]]:
        """What each of the models makes of the prompts, by its name."""
        from factsmith.tasks.ask.replies import encode_prompts, replies
        from factsmith.tasks.chat.template import end_of_turn

        model = self.run.model
        encoded = encode_prompts(model.tokenizer, prompts, chat=chat, context_length=model.context_length)
        how |= {"ends": end_of_turn(model.tokenizer) if chat else (), "most_tokens": model.limits.most_tokens}
        if self.edit is None:
            return {"answer": replies(model.decoder, encoded, **how)}
        found = {"unedited": replies(model.decoder, encoded, **how)}
        with self.edit.applied(model.decoder):
            return found | {"edited": replies(model.decoder, encoded, **how)}


def _opened(store: Store, target: str, settings: Sequence[str], batch: int | None) -> _Models:
    """What ``target`` names.

    Raises:
        InputError: it names nothing, or an edit that cannot be used.
    """
    from factsmith.tasks.planning.run import Run

    if names_run(target):
        check_runs()
        from factsmith.flows.configuration.composition import compose_again
        from factsmith.flows.exports.choice import choose, find_source
        from factsmith.tasks.editors.stage import read_edit

        source = find_source(home(), target)
        run = Run(compose_again(source.run.content, settings), store)
        edit = choose(run, source, batch).edit
        return _Models(run, read_edit(edit), edit.address)
    if batch is not None:
        raise InputError("--batch chooses an edit of a run.", got=f"the model {target}", remedy="leave it out")
    folder = Path(target).expanduser()
    from factsmith.tasks.edit.edit import OTHER_EDIT

    if (folder / OTHER_EDIT).is_file():
        from factsmith.tasks.editors.load import BASE, read_memory

        return _Models(Run(model_settings(str(folder / BASE), settings), store), read_memory(folder))
    return _Models(Run(model_settings(target, settings), store))


def _read(file: Path) -> list[str]:
    """The prompts in a file.

    Raises:
        InputError: the file cannot be read, or does not hold prompts; names the bad one.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = json.loads(text) if file.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read.", got=getattr(error, "strerror", None) or str(error)) from None
    if not isinstance(found, list):
        raise InputError(f"{file} does not hold prompts.", got=type(found).__name__, expected="a list of texts")
    for place, prompt in enumerate(found):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{file}: prompt {place} is not a text.", got=repr(prompt)[:60], expected="a text")
    return found


def _table(replies: dict[str, Reply]) -> Table:
    """What the models make of one prompt, side by side."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=len(replies) > 1)
    for name in replies:
        table.add_column(name, min_width=20)
    table.add_row(*(Text(one.continuation.strip()) for one in replies.values()))
    table.add_section()
    table.add_row(
        *(
            Text("\n".join(f"{token.probability:6.1%}  {token.text!r}" for token in one.likeliest))
            for one in replies.values()
        )
    )
    return table
