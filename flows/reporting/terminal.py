"""Tables for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from factsmith.flows.configuration.choices import EXPERIMENT, GROUPS, choices
from factsmith.flows.configuration.keys import describe_settings, setting_values
from factsmith.tasks.planning.settings import Settings

if TYPE_CHECKING:
    from factsmith.artifacts.manifest import Manifest
    from factsmith.flows.reporting.curves import Curves
    from factsmith.flows.reporting.reports import LayerReport, Report
    from factsmith.tasks.evaluation.answers_stage import Answer
    from factsmith.tasks.pipeline.workspace import StageReport

__all__ = [
    "answer_lines",
    "answers_table",
    "choices_table",
    "conditioning_table",
    "trajectory_table",
    "deployments_table",
    "scores_table",
    "settings_table",
    "stages_table",
    "store_table",
]


_MOST_FACTS = 20
"""Most facts in the table of answers. Those that do not hold come first."""

_LONGEST_ANSWER = 32

_FEW = 0.8
"""Share of facts below which it is worth saying why facts may not hold."""

_MOST_ROWS = 20
"""Most rows of a trajectory's table. MLflow and ``--json`` have all numbers of edits."""


def scores_table(report: Report, settings: Settings) -> Table:
    """Metrics before and after, in percent, each with its interval and, if they differ, the number of its records."""
    from factsmith.tasks.evaluation.family import load_families
    from factsmith.tasks.evaluation.resampling import EXPLAINED

    notes = [EXPLAINED[report.intervals_over]] if report.intervals_over else []
    same = {count for name, count in report.records.items() if name in report.intervals} == {report.facts}
    if not same:
        notes.append("of: the number of facts that have the metric")
    table = Table(
        title=f"{settings.method.name} on {settings.model.name}: {report.facts} facts, scores in percent",
        title_justify="left",
        caption="\n".join(notes) or None,
        caption_justify="left",
    )
    table.add_column("")
    for phase in report.metrics:
        table.add_column(phase, justify="right")
    table.add_column("95 %", justify="right", no_wrap=True)
    if not same:
        table.add_column("of", justify="right")
    table.add_column("meaning")
    for family in load_families(settings.dataset.metrics):
        for name, meaning in family.metrics.items():
            values = [metrics[name] for metrics in report.metrics.values()]
            cells = ["-" if value is None else f"{value:.1f}" for value in values]
            interval = report.intervals.get(name)
            cells.append(f"{interval[0]:.0f}..{interval[1]:.0f}" if interval else "")
            if not same:
                cells.append(str(report.records.get(name) or ""))
            whole = family.mean is not None and name == family.mean[0]
            table.add_row(name, *cells, meaning, style="bold" if whole else "", end_section=whole)
        table.add_section()
    return table


def answers_table(answers: Sequence[Answer]) -> Table:
    """The prompt, the new object and both answers of each fact."""
    table = Table(title="answers: does the edited model give the new object?", title_justify="left")
    for name in ("prompt", "new object", "before", "after"):
        table.add_column(name)
    table.add_column("holds")
    for one in sorted(answers, key=lambda one: one.holds)[:_MOST_FACTS]:
        holds = Text("yes", style="green") if one.holds else Text("no", style="red")
        table.add_row(one.prompt, one.target_new, _answer(one.before), _answer(one.after), holds)
        if chat := one.chat:
            holds = Text("yes", style="green") if chat.holds else Text("no", style="red")
            table.add_row(f"{chat.question} (chat)", "", _answer(chat.before), _answer(chat.after), holds)
    if len(answers) > _MOST_FACTS:
        table.caption = f"{_MOST_FACTS} of {len(answers):,} facts; --json and MLflow have all"
        table.caption_justify = "left"
    return table


def answer_lines(answers: Sequence[Answer]) -> Iterator[str]:
    """How many facts hold, and why others may not."""
    held = sum(one.holds for one in answers)
    yield f"{held:,} of {len(answers):,} facts hold: the edited model's answer starts with the new object."
    if held < _FEW * len(answers):
        yield (
            "Facts may not hold because the model does not know the object, because many facts share one batch, or "
            "because layers or constants do not suit the model: `factsmith locate` and `factsmith tune` propose others."
        )
    if held_before := sum(one.held for one in answers):
        yield f"{held_before:,} of them the unedited model gave already."
    if asked := [one.chat for one in answers if one.chat]:
        held = sum(one.holds for one in asked)
        yield f"{held:,} of {len(asked):,} facts hold in a chat: the answer to the question contains the new object."


def _answer(answer: str | None) -> str:
    if answer is None:
        return "(too long for the model)"
    plain = " ".join(answer.split())
    return plain if len(plain) <= _LONGEST_ANSWER else f"{plain[:_LONGEST_ANSWER]}..."


def trajectory_table(curves: Curves, settings: Settings) -> Table:
    """Scores, perplexity, KL and abilities by the number of edits, in at most twenty rows. The last is always shown."""
    from factsmith.flows.reporting.curves import ALL_FACTS, FIRST_FACTS, KL, PERPLEXITY, evenly
    from factsmith.tasks.abilities.measures import ACCURACY
    from factsmith.tasks.evaluation.family import load_families
    from factsmith.tasks.evaluation.summary import FIRST

    table = Table(title="trajectory: scores by number of edits", title_justify="left")
    table.add_column("edits", justify="right")
    shown: dict[str, str] = {}
    for family in load_families(settings.dataset.metrics):
        metrics = [*family.metrics]
        if family.mean and ALL_FACTS.format(family.mean[0]) in curves:
            metrics = [*family.mean[1], family.mean[0]]
        shown |= {metric: ALL_FACTS.format(metric) for metric in metrics}
        if family.mean:
            shown[f"{family.mean[0]}, first {FIRST}"] = FIRST_FACTS.format(family.mean[0])
    shown = {heading: name for heading, name in {**shown, "perplexity": PERPLEXITY, "KL": KL}.items() if name in curves}
    ability = f" {ACCURACY}"
    shown |= {
        name.removeprefix(ALL_FACTS.format("")).removesuffix(ability): name for name in curves if name.endswith(ability)
    }
    for heading in shown:
        table.add_column(heading, justify="right")
    counts = sorted({count for name in shown.values() for count in curves[name]})
    for count in evenly(counts, _MOST_ROWS):
        values = [curves[name].get(count) for name in shown.values()]
        table.add_row(f"{count:,}", *("" if value is None else f"{value:.4g}" for value in values))
    return table


def stages_table(stages: Sequence[StageReport]) -> Table:
    """The state, time and artifact of each stage."""
    table = Table(title="stages", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("artifact")
    for stage in stages:
        kind, _, digest = stage.artifact.partition("/")
        colour = "green" if stage.state == "cached" else "yellow"
        state = Text(stage.state, style=colour)
        table.add_row(stage.name, state, f"{stage.seconds:.2f}", f"{kind}/{digest[:12]}")
    table.add_section()
    cached = sum(stage.state == "cached" for stage in stages)
    seconds = sum(stage.seconds for stage in stages)
    table.add_row(f"{len(stages)} stages", f"{cached} cached", f"{seconds:.2f}", "")
    return table


def conditioning_table(layers: Sequence[LayerReport]) -> Table:
    """How well each layer's C0 is known."""
    first = layers[0]  # All layers have the same tokens.
    table = Table(
        title=f"C0 of each edited layer: {first.tokens:,} tokens, d_m = {first.dynamic_multiplier:.4g}",
        title_justify="left",
        caption="leverage: held-out leverage, close to 1 if C0 is well estimated; last three columns: eigenvalues",
        caption_justify="left",
    )
    for name in ("layer", "leverage", "effective rank", "condition", "largest", "median", "smallest"):
        table.add_column(name, justify="right")
    for one in layers:
        leverage = "-" if one.leverage is None else f"{one.leverage:.3f}"
        condition = "singular" if one.condition_number is None else f"{one.condition_number:.1e}"
        values = [f"{one.eigenvalues[name]:.1e}" for name in ("largest", "median", "smallest")]
        table.add_row(str(one.layer), leverage, f"{one.effective_rank:.1f}", condition, *values)
    return table


_STAGE_OF = {
    "accumulation": "covariance",
    "course": "trajectory",
    "directions": "principal directions",
    "effects": "locate",
    "location": "locate",
    "perplexity": "trajectory",
    "predictions": "abilities",
    "recall": "locate",
    "scores": "evaluation",
    "section": "covariance",
    "sequence": "edit",
}
"""The stages that make artifacts of another name."""


def store_table(manifests: Sequence[Manifest]) -> Table:
    """A table with one row per artifact."""
    total = sum(manifest.size for manifest in manifests)
    table = Table(caption=f"{len(manifests)} artifacts, {total:,} bytes", caption_justify="left")
    table.add_column("stage", min_width=10, overflow="fold")
    for name, width in (("artifact", 12), ("made", 10), ("series", 12)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("key")
    table.add_column("bytes", justify="right", no_wrap=True)
    for manifest in manifests:
        key = ", ".join(
            f"{len(value)} {name}" if isinstance(value, list | dict) else f"{name} {value}"
            for name, value in manifest.recipe["key"].items()
        )
        stage = _STAGE_OF.get(manifest.kind, manifest.kind)
        name = manifest.kind if stage == manifest.kind else f"{stage} ({manifest.kind})"
        made = datetime.fromisoformat(manifest.created).astimezone()
        address, series = manifest.digest[:12], manifest.series[:12]
        table.add_row(name, address, f"{made:%Y-%m-%d}", series, key, f"{manifest.size:,}")
    return table


def deployments_table(served: Sequence[tuple[str, str]]) -> Table:
    """Deployments by their addresses in Prefect, and their schedules."""
    table = Table(title="deployments", title_justify="left")
    table.add_column("deployment", no_wrap=True)
    table.add_column("runs")
    for address, when in served:
        table.add_row(address, when)
    return table


def choices_table() -> Table:
    """The choices of every group."""
    table = Table(title="choices", title_justify="left")
    table.add_column("argument", no_wrap=True)
    table.add_column("meaning")
    for group in (*GROUPS, EXPERIMENT):
        for name, description in choices(group).items():
            table.add_row(f"{group}={name}", description)
        table.add_section()
    return table


def settings_table(settings: Settings, section: str | None = None) -> Group:
    """All settings, or those of one section such as ``method.value``, with their values and meanings."""
    values = dict(setting_values(settings.model_dump(mode="json")))
    by_group: dict[str, Table] = defaultdict(_keys_table)
    for key, meaning in describe_settings():
        if section is None or key.startswith(f"{section}."):
            group = key.partition(".")[0]
            by_group[group].title = group
            by_group[group].add_row(key, "null" if values[key] is None else str(values[key]), meaning)
    return Group(*by_group.values())


def _keys_table() -> Table:
    table = Table(show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(max_width=24)
    table.add_column()
    return table
