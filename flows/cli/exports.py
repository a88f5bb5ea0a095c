"""Commands that hand an edited model on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import AsJson, check_runs, complete, preflight, show, start
from factsmith.tasks.pipeline.environment import home

if TYPE_CHECKING:
    from factsmith.flows.reporting.reports import ExportReport

__all__ = ["Keep", "Out", "Public", "PushTo", "Rank", "To", "check_hub", "check_target", "export", "show_export"]

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
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank", min=1, metavar="R", help="truncate every change to rank R, and show the error and the scores it costs"
    ),
]

PushTo = Annotated[
    str | None, typer.Option("--push", metavar="OWNER/NAME", help="upload the folder to this repository on the hub")
]
Public = Annotated[
    bool, typer.Option("--public", help="with --push: everyone may see the repository; a new one is private otherwise")
]


def export(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="an earlier run: its id, `latest`, or the address of an edit: edit/...")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTINGS]...", help="model.path=..., runtime.*; with --rank also dataset.path=..."),
    ] = None,
    to: To = "checkpoint",
    out: Out = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="which of several independent batches; of a sequence, its first N batches"
        ),
    ] = None,
    keep: Keep = None,
    rank: Rank = None,
    push: PushTo = None,
    public: Public = False,
    as_json: AsJson = False,
) -> None:
    """Write an edit of an earlier run to a folder, as a checkpoint or in another form that programs load."""
    check_target(out, to, rank, push, public=public)
    if out is None:
        raise InputError("An export needs a folder.", expected="a new or an empty folder", remedy="give --out DIR")
    given = list(arguments or [])
    places = ["model.path", *(["dataset.path"] if rank is not None else [])]
    for argument in given:
        if argument.partition("=")[0] not in places and not argument.startswith(("runtime.", "tracking.")):
            raise InputError(
                f"{argument!r} does not belong to an export.",
                expected=f"{', '.join(f'{one}=...' for one in places)}, runtime.* or tracking.*",
            )
    start()
    check_runs()
    check_hub(push, public=public)
    from factsmith.flows.configuration.composition import compose_again
    from factsmith.flows.exports.choice import choose, chosen_form, find_source
    from factsmith.flows.exports.export import export as flow
    from factsmith.tasks.editors.stage import read_edit
    from factsmith.tasks.export.thin import no_rank

    form, source, truncated = chosen_form(to, keep), find_source(home(), name), rank is not None
    settings = compose_again(source.run.content, given)
    run = preflight(settings, dataset=truncated, out=out, form=form, truncated=truncated, past=source.run)
    edit = read_edit(choose(run, source, batch).edit)
    if not truncated:
        form.check(edit)
    elif edit.adds_memory:
        raise no_rank(f"an edit of the kind {edit.kind}")
    report = complete(flow, settings, name, out, to, batch, keep, rank, push, public)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        show_export(report)


def check_target(out: Path | None, to: str, rank: int | None, push: str | None, *, public: bool) -> None:
    """Check that what is to be written has a folder, and what is public a repository.

    Raises:
        InputError: it has none.
    """
    if public and push is None:
        raise InputError("--public says who sees a repository.", remedy="give --push OWNER/NAME, or leave it out")
    given = [f"--to {to}"] if to != "checkpoint" else []
    given += [f"--rank {rank}"] if rank is not None else []
    given += [f"--push {push}"] if push is not None else []
    if out is None and given:
        raise InputError("An export needs a folder.", got=" ".join(given), remedy="give --out DIR")


def check_hub(push: str | None, *, public: bool) -> None:
    """Check that the hub takes a push, if there is one.

    Raises:
        InputError: it does not.
    """
    if push is not None:
        from factsmith.tasks.export.hub import Push, check_push

        check_push(Push(push, public))


def show_export(report: ExportReport) -> None:
    """Show what was written, and what truncation has cost."""
    from factsmith.flows.reporting.text_table import TextTable

    if report.truncated:
        table = TextTable(
            "truncation",
            ["change of", "rank", "of", "error"],
            caption="error: Frobenius norm of what was dropped, divided by that of the change",
        )
        for one in report.truncated:
            table.add(one.place, str(one.rank), str(one.of), f"{one.error:.2%}")
        show(table.terminal())
    if report.scores:
        counts = set(report.scores) == {"facts_held"}
        table = TextTable("facts that hold" if counts else "scores in percent", ["", "before", "exact", "truncated"])
        for name, values in report.scores.items():
            shown = f"{{:.{0 if counts else 1}f}}"
            table.add(name, *("" if value is None else shown.format(value) for value in values.values()))
        show(table.terminal())
    rank = f", rank {report.rank}" if report.rank else ""
    typer.echo(f"Written: {report.out} ({report.form} of {report.edit[:17]}{rank}, {report.bytes / 1e6:,.2f} MB)")
    if report.pushed is not None:
        typer.echo(f"Pushed: {report.pushed}")
