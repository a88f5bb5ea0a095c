"""What `locate` and `tune` have found, for the terminal: a table, and what to do with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from factsmith.flows.reporting.reports import SCORES, LocateReport, Trial, TuneReport
from factsmith.tasks.locate.effects import LAST_SUBJECT, LAST_TOKEN
from factsmith.tasks.planning.settings import Settings

__all__ = ["effects_table", "trials_table", "location_lines", "tuning_lines"]


def effects_table(report: LocateReport, settings: Settings) -> Table:
    """Average indirect effects by layer where they matter most, in percent; proposed layers stand out."""
    table = Table(
        title=f"{settings.model.name}: indirect effects on {report.facts} facts it knows, percent "
        f"(P(object) is {100 * report.clean:.1f}, under noise {100 * report.corrupted:.1f})",
        title_justify="left",
    )
    columns = {
        "state": report.effects["hidden"][LAST_SUBJECT],
        "MLPs": report.effects["mlp"][LAST_SUBJECT],
        "attentions": report.effects["attention"][LAST_SUBJECT],
        "through MLPs above": report.mediated,
        "state, last token": report.effects["hidden"].get(LAST_TOKEN),
        "attentions, last token": report.effects["attention"].get(LAST_TOKEN),
    }
    shown = {name: values for name, values in columns.items() if values}
    for name in ("layer", *shown):
        table.add_column(name, justify="right")
    for layer in range(len(report.mediated)):
        cells = [f"{100 * values[layer]:.1f}" for values in shown.values()]
        table.add_row(str(layer), *cells, style="bold green" if layer in report.layers else "")
    return table


def location_lines(report: LocateReport) -> Iterator[str]:
    """Lines that say what was passed over, and which words to use."""
    if report.unknown:
        yield f"{report.unknown} facts were passed over: the model does not know them."
    if report.layers:
        yield f"Edit here: 'method.layers={json.dumps(report.layers, separators=(',', ':'))}'"
    else:
        yield "No layer stands out: these facts do not go through the MLPs at the subject's last token."


def trials_table(report: TuneReport, settings: Settings) -> Table:
    """Every trial, and what start and best come to on records that were not tuned on, in percent."""
    table = Table(
        title=f"{settings.method.name} on {settings.model.name}: tuned on one half of the records, percent",
        title_justify="left",
        caption="The last two rows are the other half's, which nothing was chosen on.",
        caption_justify="left",
    )
    for name in ("trial", "lambda", "clamp", "learning rate", *SCORES, "seconds"):
        table.add_column(name, justify="right")

    def row(name: str, trial: Trial, metrics: Mapping[str, float | None], seconds: str, style: str = "") -> None:
        cells = ["-" if (value := metrics.get(score)) is None else f"{value:.1f}" for score in SCORES]
        given = [f"{number:g}" for number in (trial.preservation_weight, trial.clamp, trial.learning_rate)]
        table.add_row(name, *given, *cells, seconds, style=style)

    start, best = report.trials[0], report.trials[report.best]
    for trial in report.trials:
        style = "bold green" if trial is best else "red" if trial.error else ""
        row(str(trial.number), trial, trial.metrics, f"{trial.seconds:.1f}", style)
    table.add_section()
    row("start", start, report.held_out.start, "")
    row("best", best, report.held_out.best, "", "bold green")
    return table


def tuning_lines(report: TuneReport, out: Path | None) -> Iterator[str]:
    """Lines that say what failed, and which words to use."""
    for trial in report.trials:
        if trial.error:
            yield f"Trial {trial.number} failed: {trial.error}"
    best = report.trials[report.best]
    yield (
        f"Found: method.preservation_weight={best.preservation_weight:g} method.value.clamp={best.clamp:g} "
        f"method.value.learning_rate={best.learning_rate:g}"
    )
    if out is not None:
        yield f"Use it: model={out}"
