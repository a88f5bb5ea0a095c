"""Commands that hand an edited model on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, check_runs, complete, preflight, start
from factsmith.tasks.pipeline.environment import home

__all__ = ["Keep", "Out", "To", "export"]

To = Annotated[
    str,
    typer.Option(
        "--to", metavar="FORM", help="checkpoint (the whole model), adapter (a LoRA for PEFT) or delta (thin factors)"
    ),
]
Out = Annotated[Path | None, typer.Option(help="folder to write, new or empty")]
Keep = Annotated[
    Literal["entries", "tensors", "nothing"] | None,
    typer.Option(
        "--keep",
        help="what a delta keeps of the weights before it, so that it can be undone bit for bit: the entries that "
        "subtraction does not give back (default), whole tensors, or nothing",
    ),
]


def export(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="an earlier run: its id, `latest`, or the address of an edit: edit/...")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTINGS]...", help="model.path=..., runtime.*, tracking.*")
    ] = None,
    to: To = "checkpoint",
    out: Out = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="which of several independent batches, or the first N of a sequence"),
    ] = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Write an edit of an earlier run to a folder, as a checkpoint or in another form that programs load."""
    if out is None:
        raise InputError("An export needs a folder.", expected="a new or an empty folder", remedy="give --out DIR")
    given = list(arguments or [])
    for argument in given:
        if argument.partition("=")[0] != "model.path" and not argument.startswith(("runtime.", "tracking.")):
            raise InputError(
                f"{argument!r} does not belong to an export.", expected="model.path=..., runtime.* or tracking.*"
            )
    start()
    check_runs()
    from factsmith.flows.configuration.composition import compose_again
    from factsmith.flows.exports.choice import chosen_edit, chosen_form, find_source
    from factsmith.tasks.edit.stage import stored_edits
    from factsmith.tasks.editors.stage import read_edit

    form, source = chosen_form(to, keep), find_source(home(), name)
    settings = compose_again(source.run.content, given)
    run = preflight(settings, dataset=False, out=out, form=form, past=source.run)
    edits = stored_edits(run.workspace.store, source.run, run.model)
    form.check(read_edit(chosen_edit(source, edits, in_sequence=settings.method.in_sequence, batch=batch)))
    from factsmith.flows.exports.export import export as flow

    report = complete(flow, settings, name, out, to, batch, keep)
    typer.echo(report.model_dump_json() if as_json else f"Written: {report.out} ({report.form} of {report.edit})")
