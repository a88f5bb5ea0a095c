"""What a section of a report is made of. ``document`` has a template for each kind of block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factsmith.flows.html.chart import LineChart
from factsmith.flows.reporting.text_table import TextTable

__all__ = [
    "Block",
    "Charts",
    "Fact",
    "FactTable",
    "Folded",
    "Headline",
    "Score",
    "ScoreTable",
    "Section",
    "Text",
    "Verbatim",
]


@dataclass(frozen=True)
class Verbatim:
    """Text that is shown as it is: a command to copy, a message."""

    text: str


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    charts: Sequence[LineChart]


@dataclass(frozen=True)
class Folded:
    """A table that is shown on request.

    Attributes:
        title: what to click on.
        table: the table.
    """

    title: str
    table: TextTable


@dataclass(frozen=True)
class Headline:
    """A number that says how a run went.

    Attributes:
        name: name of the number.
        after: its value, of the edited model.
        before: its value before the edit; empty if there is none.
        note: its interval, or what else is to know.
    """

    name: str
    after: str
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class Score:
    """One metric.

    Attributes:
        name: name of the metric.
        meaning: its description.
        before: value of the unedited model, in percent; ``None`` if no record has the metric.
        after: value of the edited model.
        interval: interval of ``after``.
        records: number of records that it rests on.
        summary: whether it summarises its family.
    """

    name: str
    meaning: str
    before: float | None
    after: float | None
    interval: tuple[float, float] | None
    records: int
    summary: bool

    @property
    def is_share(self) -> bool:
        """Whether its values can be drawn on a scale from 0 to 100."""
        shown = [one for one in (self.before, self.after, *(self.interval or ())) if one is not None]
        return bool(shown) and all(0 <= one <= 100 for one in shown)


@dataclass(frozen=True)
class ScoreTable:
    """The metrics of a run, by metric family."""

    families: Sequence[tuple[str, Sequence[Score]]]


@dataclass(frozen=True)
class Text:
    """What a model wrote after a prompt, before and after the edit.

    Attributes:
        kind: kind of prompt.
        prompt: the prompt.
        before: text of the unedited model; ``None`` if there is none.
        after: text of the edited model.
        right: whether ``after`` is right; ``None`` if nobody judged.
    """

    kind: str
    prompt: str
    before: str | None
    after: str | None
    right: bool | None = None


@dataclass(frozen=True)
class Fact:
    """One fact that was written.

    Attributes:
        place: its place among the facts of the run, from 1.
        batch: its batch, from 1.
        subject: the subject.
        prompt: the prompt, with the subject.
        old: the true object; empty if it is not known.
        new: the new object.
        holds: whether it holds after the edit; ``None`` if no metric says so.
        answer: the answers to the prompt; ``None`` if none was generated.
        values: for each metric of the table, its value before and after the edit, in percent.
        texts: other texts that were generated for the fact.
    """

    place: int
    batch: int
    subject: str
    prompt: str
    old: str
    new: str
    holds: bool | None
    answer: Text | None
    values: Sequence[tuple[float | None, float | None]]
    texts: Sequence[Text]


@dataclass(frozen=True)
class FactTable:
    """The facts that were written.

    Attributes:
        facts: the facts to show.
        metrics: names and descriptions of the metrics that are shown for each fact.
        batches: number of batches.
        answers: whether answers were generated.
        judged: whether something says which facts hold.
    """

    facts: Sequence[Fact]
    metrics: Sequence[tuple[str, str]]
    batches: int
    answers: bool
    judged: bool

    @property
    def columns(self) -> int:
        """Number of columns."""
        return 5 + (self.batches > 1) + 2 * self.answers + len(self.metrics) + self.judged


Block = str | Verbatim | Charts | FactTable | Folded | ScoreTable | TextTable
"""A block. A string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: its title, which is unique in its report.
        blocks: what it is made of.
    """

    title: str
    blocks: Sequence[Block]
