"""Tables of earlier runs, for the terminal and in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.evaluation.resampling import EXPLAINED
from factsmith.tasks.ledger.entries import COUNTS
from factsmith.tasks.tracking.runs import PastRun

if TYPE_CHECKING:
    from factsmith.flows.reporting.comparison import Comparison, Score
    from factsmith.tasks.ledger.ledger import Ledger
    from factsmith.tasks.ledger.status import Line

__all__ = [
    "comparison_tables",
    "described",
    "described_line",
    "grouped",
    "ledger_lines_said",
    "ledger_table",
    "runs_table",
]

_MOST_SCORES = 4
"""Most scores of an edit on its line; --json has all."""

Family = list[tuple[int, PastRun]]
"""A run and all its parts, each with its depth."""

_COLOURS = {"FINISHED": "green", "FAILED": "red"}
_CAPTION = "noise: the interval of the difference contains zero\nintervals are not corrected for multiple comparisons"
_NO_FACTS = ("precompute", "known", "locate")


def grouped(runs: Sequence[PastRun]) -> list[Family]:
    """``runs`` (latest first), with the parts of each run below it, in the order in which they started."""
    known = {run.id for run in runs}
    below: dict[str | None, list[PastRun]] = defaultdict(list)
    for run in reversed(runs):
        below[run.parent if run.parent in known else None].append(run)

    def family(run: PastRun, depth: int = 0) -> Iterator[tuple[int, PastRun]]:
        yield depth, run
        for one in below[run.id]:
            yield from family(one, depth + 1)

    return [list(family(run)) for run in reversed(below[None])]


def described(run: PastRun) -> dict[str, Any]:
    """A run as ``--json`` prints it."""
    settings = ("model.name", "corpus.name", "method.name", "dataset.name", "method.batch_size", "dataset.batches")
    return {
        "id": run.id,
        "name": run.name,
        "flow": run.flow,
        "started": run.started.isoformat(),
        "status": run.status,
        "parent": run.parent,
        "settings": {name: run.params[name] for name in settings if name in run.params},
        "score": {"metric": run.score[0], "value": run.score[1]} if run.score else None,
    }


def runs_table(families: Sequence[Family], *, total: int, parts: bool) -> Table:
    """A table with one row per run.

    Args:
        families: the runs to show.
        total: the number of all runs.
        parts: whether parts of runs are shown. Otherwise they are counted.
    """
    hidden = f"{len(families)} of {total} runs: --limit {total} shows all" if len(families) < total else None
    table = Table(title="runs", title_justify="left", caption=hidden, caption_justify="left")
    for name in ("run", "started"):
        table.add_column(name, no_wrap=True)
    table.add_column("name")
    table.add_column("facts", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for family in families:
        for depth, run in family if parts else family[:1]:
            name = f"{'  ' * (depth - 1)}└ {run.name}" if depth else run.name
            if not parts and family[1:]:
                name += f" ({len(family) - 1} part{'s' if family[2:] else ''})"
            table.add_row(run.id[:8], _moment(run.started), name, _batches(run), _outcome(run))
    return table


def _moment(moment: datetime) -> str:
    """Date and local time, or date and year if it is not this year's, like `ls`."""
    local = moment.astimezone()
    return f"{local:%d %b %H:%M}" if local.year == datetime.now().astimezone().year else f"{local:%d %b  %Y}"


def _outcome(run: PastRun) -> Text:
    """The score of a finished run, and the status of another."""
    text = f"{run.score[0]} {run.score[1]:5.1f}" if run.score and run.status == "FINISHED" else run.status.lower()
    return Text(text, style=_COLOURS.get(run.status, "yellow"))


def _batches(run: PastRun) -> str:
    """The number of batches and of facts in each."""
    size, batches = (run.params.get(name) for name in ("method.batch_size", "dataset.batches"))
    if size is None or batches is None or run.flow in _NO_FACTS:
        return "-"
    facts = run.metrics.get("facts")
    if size == "all" or batches == "1":
        return size if facts is None else f"{facts:.0f}"
    return f"{'all' if batches == 'null' else batches}×{size}"


# --------------------------------------------------------------------------------------------- runs side by side


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """Tables of the runs, of the settings that differ, and of the scores of each phase."""
    ids = [run.id[:8] for run in comparison.runs]
    title = "runs" if comparison.settings else "runs with the same settings"
    over = {run.intervals_over for run in comparison.runs} | {run.differences_over for run in comparison.runs}
    caption = "\n".join(text for one, text in EXPLAINED.items() if one in over - {"facts"})
    columns = ["run", "name", "facts", "shared", "bootstrap"]
    runs = TextTable(title, columns, labels=2, wrapped=["name"], caption=caption)
    for place, run in enumerate(comparison.runs):
        drawn = [str(run.shared), f"{'paired' if run.paired else 'independent'}, {run.differences_over}"]
        runs.add(ids[place], run.name, str(run.facts), *(drawn if place else ["", run.intervals_over]))
    found = [runs]
    if comparison.settings:
        settings = TextTable("settings that differ", ["setting", *ids], labels=1 + len(ids), wrapped=ids)
        for name, values in comparison.settings.items():
            settings.add(name, *("-" if value is None else value for value in values))
        found.append(settings)
    found += [_scores_table(comparison, phase, ids) for phase in comparison.scores]
    found.append(_numbers_table("drift on held-out text", comparison.drift, ids))
    found.append(_numbers_table("general abilities of the edited model", comparison.abilities, ids))
    return [table for table in found if table.rows]


def _numbers_table(title: str, numbers: Mapping[str, Sequence[float | None]], ids: Sequence[str]) -> TextTable:
    table = TextTable(title, ["", *ids])
    for name, by_run in numbers.items():
        table.add(name, *("-" if value is None else f"{value:.4g}" for value in by_run))
    return table


def _scores_table(comparison: Comparison, phase: str, ids: Sequence[str]) -> TextTable:
    """A table with one row per metric for two runs, and one row per metric and run for more, which need more space."""
    two = len(ids) == 2
    columns = ["", *ids, f"{ids[1]} - {ids[0]}"] if two else ["", "run", phase, f"difference from {ids[0]}"]
    table = TextTable(f"scores {phase}, percent [95 % interval]", columns, labels=len(columns), caption=_CAPTION)
    for name, scores in comparison.scores[phase].items():
        strong = name in comparison.means
        if two:
            table.add(name, *map(_value, scores), _difference(scores[1]), strong=strong)
            continue
        for place, (run, score) in enumerate(zip(ids, scores, strict=True)):
            table.add(name, run, _value(score), _difference(score) if place else "", strong=strong)
        table.end_section()
    return table


def _value(score: Score | None) -> str:
    if score is None:
        return "-"
    one = score.interval
    return f"{one.value:z5.1f} [{one.low:z.1f}, {one.high:z.1f}]"


def _difference(score: Score | None) -> str:
    if score is None or score.difference is None:
        return "-"
    one = score.difference
    if not any(round(number, 1) for number in (one.value, one.low, one.high)):
        return "  0.0 no difference"
    return f"{one.value:+z5.1f} [{one.low:+z.1f}, {one.high:+z.1f}]{' noise' if score.noise else ''}"


# --------------------------------------------------------------------------------------------- what runs have written


def ledger_table(lines: Sequence[Line], ledgers: Sequence[Ledger], limit: int) -> Table:
    """The last facts of ledgers, one row each. A line separates facts of different models.

    Args:
        lines: the facts.
        ledgers: the ledgers that they are from.
        limit: most facts to show.
    """
    notes = [f"the last {limit} of {len(lines)} facts: --limit {len(lines)} shows all"] if len(lines) > limit else []
    notes += ["facts between two lines are in one model, those of different sections in different ones"][
        : len(ledgers) - 1
    ]
    table = Table(title="ledger", title_justify="left", caption="\n".join(notes) or None, caption_justify="left")
    for name in ("#", "case"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("prompt")
    table.add_column("new object")
    for name in ("run", "holds", "status"):
        table.add_column(name, no_wrap=True)
    ends = set(accumulate(sum(len(edit.facts) for edit in ledger.edits) for ledger in ledgers))
    for line in lines[-limit:]:
        fact, colour = line.fact, "yellow" if line.overwritten else ""
        table.add_row(
            str(line.number),
            str(fact.case_id),
            fact.prompt,
            fact.target_new,
            line.edit.run[:8] if line.edit.run else "-",
            {None: "-", True: "yes", False: "no"}[fact.holds],
            Text(line.status, style=colour),
            end_section=line.number in ends,
        )
    return table


def ledger_lines_said(ledgers: Sequence[Ledger]) -> Iterator[str]:
    """What each edit of ledgers is, on one line each."""
    for number, ledger in enumerate(ledgers, start=1):
        where = f"Model {number}" if len(ledgers) > 1 else "Model"
        yield f"{where}: {ledger.base} (weights {ledger.weights[:12]}), edited by"
        for edit in ledger.edits:
            run = f"run {edit.run[:8]}" if edit.run else "an unknown run"
            asked = sum(one.holds is not None for one in edit.facts)
            held = sum(bool(one.holds) for one in edit.facts)
            shown = (
                [f"{held:,} of {asked:,} facts hold"]
                if asked
                else [f"{len(edit.facts):,} fact{'' if len(edit.facts) == 1 else 's'}, not scored"]
            )
            shown += [f"{name} {value:g}" for name, value in edit.scores.items() if name not in COUNTS][:_MOST_SCORES]
            yield f"  {run}, {_moment(edit.written)}, {edit.method}: {', '.join(shown)}"


def described_line(line: Line, ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """A fact of a ledger as ``--json`` prints it. ``model`` is the place of its ledger, from 0."""
    model = next(place for place, one in enumerate(ledgers) if any(edit is line.edit for edit in one.edits))
    return {
        "number": line.number,
        **line.fact.model_dump(mode="json"),
        "prompt": line.fact.prompt,
        "model": model,
        "edit": line.edit.edit,
        "run": line.edit.run,
        "written": line.edit.written.isoformat(),
        "method": line.edit.method,
        "later": line.later,
        "overwritten": line.overwritten,
    }
