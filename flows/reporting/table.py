"""A table before it is drawn: for the terminal, for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text

__all__ = ["Sheet"]


@dataclass
class Sheet:
    """Rows of text under named columns.

    Attributes:
        title: above it.
        columns: names.
        words: how many of the columns, from the left, hold words; the others hold numbers.
        rows: cells.
        weak: rows to be pointed out, by their number.
        strong: rows that sum others up, by their number.
        sections: numbers of the rows that end a section.
        caption: below it.
        wrapped: columns whose cells may break into lines, in a terminal that is too narrow.
    """

    title: str
    columns: Sequence[str]
    words: int = 1
    rows: list[list[str]] = field(default_factory=list)
    weak: set[int] = field(default_factory=set)
    strong: set[int] = field(default_factory=set)
    sections: set[int] = field(default_factory=set)
    caption: str = ""
    wrapped: Sequence[str] = ()

    def add(self, *cells: str, weak: bool = False, strong: bool = False) -> None:
        """Add a row; ``weak`` ones fall short of something, ``strong`` ones sum others up."""
        if weak:
            self.weak.add(len(self.rows))
        if strong:
            self.strong.add(len(self.rows))
        self.rows.append(list(cells))

    def end_section(self) -> None:
        """Draw a line below the last row."""
        self.sections.add(len(self.rows) - 1)

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", caption=self.caption or None, caption_justify="left")
        for place, name in enumerate(self.columns):
            justify: Literal["left", "right"] = "left" if place < self.words else "right"
            table.add_column(name, justify=justify, no_wrap=name not in self.wrapped, overflow="fold")
        for number, row in enumerate(self.rows):
            colour = "red" if number in self.weak else ""
            style = "bold" if number in self.strong else ""
            cells = (Text(cell, style=colour) for cell in row)
            table.add_row(*cells, style=style, end_section=number in self.sections)
        return table

    def markdown(self) -> str:
        """GitHub's Markdown; rows that are pointed out are in italics, and what strong ones hold is in bold."""
        marks = [":--"] * self.words + ["--:"] * (len(self.columns) - self.words)
        lines = [f"**{self.title}**", "", _line(self.columns), _line(marks)]
        for number, row in enumerate(self.rows):
            mark = "*" * ((number in self.weak) + 2 * (number in self.strong))
            lines.append(_line([f"{mark}{cell.strip()}{mark}" if cell else cell for cell in row]))
        return "\n".join([*lines, *(["", self.caption] if self.caption else []), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
