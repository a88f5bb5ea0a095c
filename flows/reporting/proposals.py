"""The results of `locate` and `tune` for the terminal: a table, and the arguments to use."""

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
    """Average indirect effects by layer at the tokens that matter most, in percent. Proposed layers are highlighted."""
    table = Table(
        title=f"{settings.model.name}: indirect effects on {report.facts} known facts, percent "
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
    """Lines about facts that were left out, and the argument to use."""
    if report.unknown:
        yield f"{report.unknown} facts were left out because the model does not know them."
    if report.layers:
        yield f"Edit here: 'method.layers={json.dumps(report.layers, separators=(',', ':'))}'"
    else:
        yield "No layer stands out: the MLPs at the subject's last token do not mediate these facts."


def trials_table(report: TuneReport, settings: Settings) -> Table:
    """All trials, and the scores of the start and the best trial on the other half, in percent."""
    table = Table(
        title=f"{settings.method.name} on {settings.model.name}: tuned on one half of the records, percent",
        title_justify="left",
        caption="The last two rows are scores on the other half, which was not used for tuning.",
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
    """Lines about trials that failed, and the arguments to use."""
    for trial in report.trials:
        if trial.error:
            yield f"Trial {trial.number} failed: {trial.error}"
    best = report.trials[report.best]
    weight = "null_space.l2" if "null_space" in report.editing else "preservation_weight"
    yield (
        f"Found: method.{weight}={best.preservation_weight:g} method.value.clamp={best.clamp:g} "
        f"method.value.learning_rate={best.learning_rate:g}"
    )
    if out is not None:
        yield f"Use it: model={out}"
