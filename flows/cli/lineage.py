"""Commands about what was written into a model: its ledger, and deltas that are applied or undone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factsmith.artifacts.errors import InputError
from factsmith.flows.cli.common import (
    AsJson,
    check_runs,
    complete,
    model_settings,
    names_run,
    preflight,
    show,
    start,
    without_controls,
)
from factsmith.flows.cli.exports import Keep, Out
from factsmith.tasks.pipeline.environment import home
from factsmith.tasks.planning.home import open_store

if TYPE_CHECKING:
    from factsmith.tasks.deltas.file import DeltaFile, Keeps
    from factsmith.tasks.deltas.stack import Stacked
    from factsmith.tasks.ledger.ledger import Ledger
    from factsmith.tasks.ledger.status import Line
    from factsmith.tasks.planning.run import Run

__all__ = ["apply", "log", "undo"]

DeltasAndSettings = Annotated[
    list[str],
    typer.Argument(metavar="DELTA... [SETTINGS]...", help="folders of deltas, the first one first; model.*, runtime.*"),
]


def log(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a folder that Factsmith wrote, a run (its id or `latest`), or a model as `model=` or `model.path=` "
            "takes it: then all edits of it",
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTINGS]...", help="with --undo: model.path=..., dataset.path=..., runtime.*"),
    ] = None,
    undo: Annotated[
        str | None, typer.Option(metavar="FACT", help="a fact to remove: #NUMBER in the list, case id or subject")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="with --undo: folder to write the delta to, new or empty")] = None,
    keep: Keep = None,
    limit: Annotated[int, typer.Option(min=1, help="most facts to show; --json has all")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the facts that were written into a model: when, by which run and method, and whether they hold.

    A fact is overwritten if a later one has another object of the same subject, with the same prompt or in the same
    relation. Scores are percent.

    --undo FACT says how the last edit is made without one of its facts, and with --out makes it, and writes the delta
    that leads there: to the bit what a run without the fact would have written.
    """
    start()
    ledgers = _ledgers(model)
    from factsmith.tasks.ledger.status import find_line, ledger_lines

    lines = ledger_lines(ledgers)
    if undo is not None:
        _undo_fact(find_line(lines, undo), ledgers, list(arguments or []), out, keep, as_json)
        return
    if given := [*(arguments or []), *(["--out"] if out else []), *([f"--keep {keep}"] if keep else [])]:
        raise InputError(f"{given[0]} has no effect without --undo.", remedy="add --undo FACT, or leave it out")
    from factsmith.flows.reporting.runs import described_line, ledger_lines_said, ledger_table

    if as_json:
        models = [one.model_dump(mode="json", exclude={"edits": {"__all__": {"facts"}}}) for one in ledgers]
        typer.echo(json.dumps({"models": models, "facts": [described_line(line, ledgers) for line in lines]}))
        return
    if not lines:
        typer.echo(f"Nothing was written into {model}.")
        return
    show(ledger_table(lines, ledgers, limit))
    typer.echo(without_controls("\n".join(ledger_lines_said(ledgers))))


def apply(
    arguments: DeltasAndSettings,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="the model: a choice, a YAML file, a folder or an id on the hub")
    ] = None,
    out: Out = None,
    independent: Annotated[
        bool,
        typer.Option("--independent", help="add up deltas that were all made on this model, without each other"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model with deltas, one on top of the other, to a folder as a checkpoint.

    Each delta applies to the weights that it was made for, and to no others.
    """
    _restack(arguments, model, out, independent, as_json, undo=False)


def undo(
    edited: Annotated[str, typer.Argument(metavar="EDITED", help="a model that has the deltas")],
    arguments: DeltasAndSettings,
    out: Out = None,
    independent: Annotated[
        bool, typer.Option("--independent", help="subtract deltas that have others on top of them, to rounding")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model without deltas that it has, given in the order in which they were applied.

    The weights are those before the deltas to the bit, unless they keep nothing of them. The command says which.
    """
    _restack(arguments, edited, out, independent, as_json, undo=True)


def _restack(
    arguments: Sequence[str], model: str | None, out: Path | None, independent: bool, as_json: bool, *, undo: bool
) -> None:
    """Apply or undo deltas, and say what the model is then."""
    start()
    from factsmith.tasks.deltas.checks import check_stack
    from factsmith.tasks.deltas.file import read_delta
    from factsmith.tasks.export.stack_stage import apply_deltas, undo_deltas
    from factsmith.tasks.ledger.status import contradictions, written
    from factsmith.tasks.planning.preflight import check_new_folder

    if out is None:
        raise InputError("A checkpoint needs a folder.", expected="a new or an empty folder", remedy="give --out DIR")
    settings = [one for one in arguments if "=" in one and not Path(one).is_dir()]
    deltas = [read_delta(Path(one)) for one in arguments if one not in settings]
    if not deltas:
        raise InputError("There is no delta.", expected="folders that `factsmith export RUN --to delta` wrote")
    check_stack(deltas, independent=independent)
    check_new_folder(out, open_store())
    run = _opened(model, settings, deltas[0].about.dtype)
    work = undo_deltas if undo else apply_deltas
    found = work(run.workspace, run.model, deltas, out, independent=independent)
    pairs = contradictions(found.ledger)
    if as_json:
        report = {
            "out": str(out),
            "state": found.state,
            "exact": found.exact,
            "deltas": [str(one.folder) for one in deltas],
            "facts": sum(len(edit.facts) for edit in found.ledger.edits),
            "contradictions": [
                [{"number": line.number, **line.fact.model_dump(mode="json")} for line in pair] for pair in pairs
            ],
        }
        typer.echo(json.dumps(report))
        return
    for line, later in pairs:
        typer.echo(f"#{line.number} {written(line.fact)} is overwritten by #{later.number} {written(later.fact)}")
    typer.echo(_said(found, deltas, undo=undo))
    typer.echo(f"{'Model' if undo else 'Edited model'}: {out}")


def _said(found: Stacked, deltas: Sequence[DeltaFile], *, undo: bool) -> str:
    """What the weights are, in words."""
    count = f"{len(deltas)} delta{'s' if len(deltas) > 1 else ''}"
    if found.exact:
        return (
            f"{count} undone: the weights are those before, bit for bit."
            if undo
            else f"{count} applied: the weights are those of the edit, bit for bit."
        )
    if not undo and found.expected is None:
        return f"{count} added up. None was made to go with the others: score the model before you use it."
    if undo:
        return f"{count} subtracted: the weights are those before to rounding, not bit for bit."
    return (
        f"{count} applied to rounding: some weights differ in their last bits from those of the edit, because "
        "this machine adds in another order."
    )


def _undo_fact(
    line: Line, ledgers: Sequence[Ledger], arguments: list[str], out: Path | None, keep: Keeps | None, as_json: bool
) -> None:
    """Say how the edit of a fact is made without it, and make it if there is a folder for the delta."""
    from factsmith.tasks.ledger.runs_stage import run_ledgers
    from factsmith.tasks.ledger.status import written
    from factsmith.tasks.tracking.runs import find_run

    ledger = next(one for one in ledgers if any(edit is line.edit for edit in one.edits))
    above = len(ledger.edits) - 1 - next(place for place, edit in enumerate(ledger.edits) if edit is line.edit)
    name = f"#{line.number} {written(line.fact)}"
    if above:
        raise InputError(
            f"{name} cannot be removed alone: {above} later edit{'s were' if above > 1 else ' was'} made on top of it.",
            got=f"the edit of run {line.edit.run}" if line.edit.run else line.edit.edit,
            expected="a fact of the last edit",
            remedy="undo the deltas of the later edits, remove the fact, and make these edits again on what is left",
        )
    if line.edit.run is None:
        raise InputError(f"No run is known that wrote {name}.", got=line.edit.edit)
    check_runs()
    from factsmith.flows.configuration.composition import compose_again
    from factsmith.flows.exports.forget import find_record, forget, written_again

    past = find_run(home(), line.edit.run)
    if line.edit.edit not in {one.edits[-1].edit for one in run_ledgers(past, open_store())}:
        raise InputError(
            f"{name} is in a part of the edit of run {past.id[:8]}, and cannot be removed from it.",
            got="a truncated edit, or the first batches of a sequence",
            expected="the edit as the run made it",
            remedy=f"remove it from that: `factsmith log {past.id[:8]} --undo ... --out DIR`",
        )
    settings = compose_again(past.content, arguments)
    run = preflight(settings, dataset=True)
    if run.adds_memory:
        raise InputError(
            f"{name} is in a memory, and a delta holds changes of weights.",
            got=f"method={settings.method.name}",
            remedy="write the other facts again with that method, without this one",
        )
    record, batches, place = find_record(run.batches, line.edit, line.fact)
    less = batches.without(record)
    again = written_again(less, place)
    how = (
        f"the sequence is written again from batch {place + 1} of {len(batches.batches)} on ({_facts(again)})"
        if batches.in_sequence
        else f"its batch is written again without it ({_facts(again)})"
        if again
        else "it is the only fact of its edit, so that the unedited weights are left"
    )
    if out is None:
        plan = {"fact": line.fact.model_dump(mode="json"), "run": past.id, "written_again": again}
        typer.echo(json.dumps(plan) if as_json else f"To remove {name}, {how}. --out DIR does it and writes the delta.")
        return
    from factsmith.tasks.planning.preflight import check_new_folder

    check_new_folder(out, open_store())
    report = complete(forget, settings, past.id, line.fact.model_dump(mode="json"), out, keep or "entries")
    if as_json:
        typer.echo(report.model_dump_json())
        return
    typer.echo(f"Removed {name}: {how}.")
    typer.echo(
        f"Delta: {out}. It applies to the model with the edit of run {past.id[:8]}, and leaves {_facts(report.left)}."
    )


def _facts(count: int) -> str:
    return f"{count:,} fact{'' if count == 1 else 's'}"


def _ledgers(model: str) -> list[Ledger]:
    """The ledgers that an argument names.

    Raises:
        InputError: it names nothing that has a ledger.
    """
    from factsmith.tasks.ledger.ledger import read_ledger
    from factsmith.tasks.ledger.runs_stage import ledgers_on, run_ledgers
    from factsmith.tasks.tracking.runs import find_run, past_runs

    folder = Path(model).expanduser()
    if folder.is_dir() and (found := read_ledger(folder)) is not None:
        return [found]
    store = open_store()
    if names_run(model):
        check_runs()
        return run_ledgers(find_run(home(), model), store)
    from factsmith.tasks.planning.run import Run

    opened = Run(model_settings(model, []), store)
    weights = opened.model.fingerprint.weights if opened.model.checkpoint.is_here else None
    check_runs()
    return ledgers_on(past_runs(home()), store, opened.settings.model.path, weights)


def _opened(model: str | None, settings: Sequence[str], dtype: str) -> Run:
    """A run that reads the model of deltas, with weights in ``dtype``.

    Raises:
        InputError: there is no such model, or its settings have another data type.
    """
    from factsmith.tasks.planning.run import Run

    named = [one for one in settings if one.startswith(("model=", "model.path="))]
    if (model is None) != (len(named) == 1):
        raise InputError(
            "There has to be one model.",
            got=f"--model {model} and {', '.join(named)}" if model else ", ".join(named) or None,
            expected="--model MODEL, model=CHOICE or model.path=FOLDER",
            remedy="name the model that the deltas are for",
        )
    others = [one for one in settings if one not in named]
    composed = model_settings(model or named[0].partition("=")[2], others)
    if composed.model.dtype not in ("auto", dtype):
        raise InputError(
            f"The deltas were made for weights in {dtype}.",
            got=f"model.dtype={composed.model.dtype}",
            remedy="leave out model.dtype",
        )
    run = Run(composed.model_copy(update={"model": composed.model.model_copy(update={"dtype": dtype})}), open_store())
    run.model.checkpoint.check_readable()
    run.workspace.store.check_writable()
    return run
