"""Shared by the commands: their arguments, the checks before anything slow starts, and the display of a report."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from factsmith.artifacts.errors import InputError, closest
from factsmith.artifacts.processes.signs_of_life import living
from factsmith.tasks.pipeline.environment import SERVED, check_writable, home, prepare_command_line
from factsmith.tasks.planning.home import open_store
from factsmith.tasks.tracking.runs import REPORT_MARK

if TYPE_CHECKING:
    from prefect import Flow

    from factsmith.flows.reporting.reports import Report
    from factsmith.tasks.export.form import Form
    from factsmith.tasks.planning.run import Run
    from factsmith.tasks.planning.settings import Settings
    from factsmith.tasks.tracking.runs import PastRun

__all__ = [
    "Arguments",
    "AsJson",
    "From",
    "ReportFile",
    "check_report_file",
    "check_runs",
    "complete",
    "compose_arguments",
    "model_settings",
    "names_run",
    "is_setting",
    "preflight",
    "show",
    "show_report",
    "start",
    "without_controls",
    "write_report",
]

T = TypeVar("T")

_RUN = re.compile(r"latest|[0-9a-f]{4,32}")

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Characters that control a terminal, but for the end of a line."""

_BEGINNING = 500
"""Characters at the beginning of a file that tell whether it is a report."""

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SETTINGS]...", help="choices and settings: model=cf-gpt2 method.batch_size=64 ..."),
]
ReportFile = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="also write the report of the run to this HTML file"),
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="URL", help="look for statistics at URL before computing them (runtime.mirror)"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else on stdout")]


class _Once(logging.Filter):
    """Says everything once. A flow reads its input again after the command has checked it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


def start() -> None:
    """Set the environment and the log messages of a command, before anything slow is imported."""
    prepare_command_line()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def compose_arguments(arguments: list[str] | None, mirror: str | None = None, **options: Any) -> Settings:
    """Prepare the command, and compose the settings of its run. ``mirror`` is what ``--from`` gives."""
    start()
    from factsmith.flows.configuration.composition import compose

    given = [] if mirror is None else [f"runtime.mirror={mirror}"]
    return compose([*(arguments or []), *given], **options)


def names_run(name: str) -> bool:
    """Whether an argument that names a run or a model names a run: its id or ``latest``."""
    from factsmith.flows.configuration.choices import choice_names

    return not os.path.lexists(name) and name not in choice_names("model") and bool(_RUN.fullmatch(name))


def model_settings(model: str, settings: Sequence[str]) -> Settings:
    """The settings that open a model and read nothing else.

    Args:
        model: a choice, a YAML file, or what ``model.path`` takes.
        settings: settings besides.

    Raises:
        InputError: there is no such model.
    """
    from factsmith.flows.configuration.choices import choice_names
    from factsmith.flows.configuration.composition import UNUSED_BUT_THE_MODEL, compose

    is_choice = model in choice_names("model") or model.endswith((".yaml", ".yml"))
    if not is_choice and not os.path.lexists(model) and "/" not in model:
        raise InputError(
            f"There is no run and no model {model!r}.",
            expected="a run, a choice of model, a folder, a GGUF file, or owner/name on the hub",
            remedy=closest(model, choice_names("model")),
        )
    which = [f"model={model}"] if is_choice else ["model=local", f"model.path={model}", f"model.name={model}"]
    return compose([*which, *settings], stand_ins=UNUSED_BUT_THE_MODEL)


def is_setting(argument: str) -> bool:
    """Whether an argument is a setting, and not a file, which may have an equals sign in its name."""
    return "=" in argument and not Path(argument).is_file()


def check_report_file(file: Path | None) -> None:
    """Check that a report can be written to ``file``, if one is given.

    Raises:
        InputError: the file has another name than reports have, holds something else, or cannot be written.
    """
    if file is None:
        return
    if file.suffix not in (".html", ".htm"):
        raise InputError(f"{file} cannot be the file of a report.", expected="a name that ends in .html")
    if os.path.lexists(file) and not (file.is_file() and REPORT_MARK in file.read_text(errors="replace")[:_BEGINNING]):
        raise InputError(f"{file} exists already.", expected="a new file, or a report that an earlier command wrote")
    check_writable(file)


def write_report(run: str, file: Path | None) -> None:
    """Write the report of the run with the id ``run`` to ``file``, if one is given."""
    if file is not None:
        from factsmith.tasks.tracking.runs import find_run

        file.write_text(find_run(home(), run).report, encoding="utf-8")


def check_runs() -> None:
    """Check that a run has been logged.

    Raises:
        InputError: none has.
    """
    from factsmith.tasks.tracking.tracker import DATABASE

    if not os.environ.get("MLFLOW_TRACKING_URI") and not (home() / DATABASE).is_file():
        raise InputError(f"There are no runs in {home()} yet.", remedy="start with `factsmith run`")


def preflight(
    settings: Settings,
    *,
    dataset: bool,
    editing: bool = True,
    out: Path | None = None,
    form: Form | None = None,
    truncated: bool = False,
    past: PastRun | None = None,
) -> Run:
    """Check the user's input before anything is written."""
    from factsmith.tasks.planning.preflight import check_input
    from factsmith.tasks.planning.run import Run

    run = Run(settings, open_store())
    try:
        check_input(run, dataset=dataset, editing=editing, out=out, form=form, truncated=truncated, past=past)
    except OSError as error:  # So far only the user's paths were used: a name may be too long, permission missing, ...
        raise InputError(f"{error.filename or 'A file'} cannot be used.", got=error.strerror) from None
    return run


def complete(flow: Flow[..., T], *given: Any) -> T:
    """Run ``flow`` with what it is ``given``.

    The run has a page in Prefect if there is a server: one that ``PREFECT_API_URL`` names, or that of `factsmith serve`
    in the same home. Without one the flow runs without Prefect, because to start a server takes longer than most
    commands do, and nobody would see the page.

    Raises:
        InputError: the server at ``PREFECT_API_URL`` does not answer.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    address = PREFECT_API_URL.value() or (living(home() / SERVED) or {}).get("api")
    if address is None:
        return flow.fn(*given)
    if prefect_home := os.environ.get("PREFECT_HOME"):
        Path(prefect_home).mkdir(parents=True, exist_ok=True)
    # Stopping the heartbeat costs a second per flow, and nothing watches the heartbeat of a command.
    settings: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_API_URL: address}
    try:
        with temporary_settings(settings):
            from factsmith.flows.services.dead_flow_runs import crash_dead_flow_runs

            crash_dead_flow_runs(home())
            return flow(*given)
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        raise InputError(
            "Prefect's server does not answer.",
            got=f"PREFECT_API_URL={os.environ.get('PREFECT_API_URL')}",
            remedy="start the server, or unset PREFECT_API_URL to run without one",
        ) from None


def show_report(
    report: Report, settings: Settings, as_json: bool, out: Path | None = None, report_file: Path | None = None
) -> None:
    """Show the report of a run."""
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from factsmith.flows.reporting.curves import COLLAPSE, collapse
    from factsmith.flows.reporting.reports import PrecomputeReport
    from factsmith.flows.reporting.terminal import conditioning_table, scores_table, stages_table, trajectory_table

    if report.metrics:
        show(scores_table(report, settings))
    if report.trajectory:
        show(trajectory_table(report.trajectory, settings))
        if (edits := collapse(report.trajectory)) is not None:
            typer.echo(
                f"Collapsed: after {edits:,} edits, the perplexity of held-out text is at least {COLLAPSE:g} times its "
                "initial value."
            )
    if report.drift:
        from factsmith.flows.reporting.drift import drift_table

        show(drift_table(report.drift))
    if report.abilities or report.lm_eval or report.inference:
        from factsmith.flows.reporting.page import further_tables

        show(*(table.terminal() for table in further_tables(report.abilities, report.lm_eval, report.inference)))
    if isinstance(report, PrecomputeReport):
        show(conditioning_table(report.layers))
    if report.answers:
        from factsmith.flows.reporting.terminal import answer_lines, answers_table

        show(answers_table(report.answers))
        typer.echo("\n".join(answer_lines(report.answers)))
    show(stages_table(report.stages))
    if settings.finds_tokens and report.dynamic_multiplier is not None:
        typer.echo(f"corpus.dynamic_multiplier=auto: {report.dynamic_multiplier:g}")
    if out is not None:
        typer.echo(f"Edited model: {out}{_with_memory(settings)}")
    if report_file is not None:
        typer.echo(f"Report: {report_file}")
    command = "factsmith" if shutil.which("factsmith") else sys.argv[0]
    typer.echo(f"Run {report.mlflow_run_id[:8]}. Compare runs in the MLflow UI: {command} ui")


def _with_memory(settings: Settings) -> str:
    """What the folder of an edited model has, if its method adds a memory."""
    from factsmith.tasks.editors.editor import load_editor
    from factsmith.tasks.editors.load import SAID

    name = settings.method.editor
    return f" ({SAID})" if name is not None and load_editor(name).edit.adds_memory else ""


def show(*tables: Any) -> None:
    """Print tables. Markup is off, because names may contain what Rich would read as markup.

    Texts may be those of a model or of a ledger that somebody else has written. A terminal would obey what is in them.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render(self, *given: Any, **named: Any) -> Any:
            for one in super().render(*given, **named):
                yield one if one.control else Segment(without_controls(one.text), one.style)

    Plain(markup=False, emoji=False).print(*tables, sep="\n")


def without_controls(text: str) -> str:
    """``text`` without characters that control a terminal."""
    return _CONTROLS.sub("", text)
