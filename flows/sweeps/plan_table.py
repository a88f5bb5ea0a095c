"""The table of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from factsmith.tasks.planning.plan import StagePlan
from factsmith.tasks.planning.prediction.predict import (
    ALGEBRA,
    PROMPTS,
    START,
    STORE,
    TEXT,
    TOKENS,
    Predicted,
    Prediction,
)

__all__ = ["plan_table"]


def plan_table(
    stages: Sequence[StagePlan], title: str, unstored: Sequence[str], prediction: Prediction | None = None
) -> Table:
    """What each stage would build, its cost, and what is not stored because it is quicker to compute again.

    Args:
        stages: the plans of the stages.
        title: what is planned.
        unstored: what is not stored.
        prediction: how long the stages would take, if that is known.
    """
    caption = "FLOP and memory are estimates. Memory does not include Python and its libraries."
    if unstored:
        names = " and ".join(unstored).capitalize()
        caption += f"\n{names} are not stored: this device computes them again in less time than it reads them."
    if prediction is not None:
        caption += "\n" + "\n".join(_prediction_lines(prediction))
    table = Table(title=f"{title}: what it would do", title_justify="left", caption=caption, caption_justify="left")
    for name in ("stage", "to build"):
        table.add_column(name)
    for name in ("FLOP", "to write", "peak memory", *(["time"] if prediction else [])):
        table.add_column(name, justify="right")
    times = {one.name: one for one in prediction.stages} if prediction else {}
    if "start" in times:
        table.add_row(
            "start", f"{prediction.nodes if prediction else 1:,} with the model", "", "", "", _time(times["start"])
        )
    for stage in stages:
        if not stage.missing:
            nothing = Text.assemble(("nothing", "green"), f": {stage.total:,} {stage.unit} cached")
            table.add_row(stage.name, nothing, "", "", "")
            continue
        count = Text.assemble((f"{stage.missing:,}", "yellow"), f" of {stage.total:,} {stage.unit}")
        time = [_time(times[stage.name])] if prediction else []
        table.add_row(stage.name, count, _flop(stage.flop), _size(stage.bytes), _size(stage.memory), *time)
        if stage.name == "covariance" and "reduction" in times:
            table.add_row("reduction", "sums of the nodes", "", "", "", _time(times["reduction"]))
    table.add_section()
    missing = [stage for stage in stages if stage.missing]
    table.add_row(
        f"{len(stages)} stages",
        f"{len(stages) - len(missing)} cached",
        _flop(sum(stage.flop for stage in missing)),
        _size(sum(stage.bytes for stage in missing)),
        _size(max((stage.memory for stage in missing), default=0)),
        *([_duration(prediction.seconds)] if prediction else []),
    )
    return table


_MARKS = {"measured": "", "published": " p", "assumed": " a", "unknown": ""}


def _time(one: Predicted) -> str:
    if one.rate == "unknown":
        return "?"
    return f"{_duration(one.seconds)}{'/' if one.divided else ''}{_MARKS[one.rate]}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _prediction_lines(prediction: Prediction) -> Iterator[str]:
    """What the column of times means, and what all of it costs."""
    each = f", {prediction.gpus} GPUs each" if prediction.gpus > 1 else ""
    nodes = f"{prediction.nodes:,} node{'s' if prediction.nodes > 1 else ''}"
    yield f"Time on {nodes}{each}: {prediction.device}."
    rates = {one.rate for one in prediction.stages}
    divided = (
        " Those with a / are shared by the nodes; during the others, all but one wait." if prediction.nodes > 1 else ""
    )
    if {"published", "assumed"} & rates:
        yield (
            f"p: from published peak rates, of which {TEXT:.0%} over text, {PROMPTS:.0%} over prompts and "
            f"{ALGEBRA:.0%} in algebra are assumed;"
        )
        yield f"a: from an assumed {STORE / 1e9:g} GB/s, {TOKENS:,.0f} tokens/s, and {START:g} s to start.{divided}"
    elif divided:
        yield divided.strip()
    if "unknown" in rates:
        yield "?: nothing is known of this stage's speed, so the sum is too small."
    unit = "GPU" if prediction.gpus else "node"
    cost = "" if prediction.price is None else f", {prediction.price:,.2f} at the given price"
    yield f"{prediction.hours:,.2f} {unit} hours{cost}."


def _size(count: float) -> str:
    if count < 5e4:
        return "< 0.1 MB"
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _flop(count: float) -> str:
    return f"{count / 1e12:,.1f} T" if count >= 1e11 else f"{count / 1e9:,.1f} G" if count else ""
