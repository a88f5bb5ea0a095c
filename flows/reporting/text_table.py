"""A table of text that can be shown on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text

__all__ = ["TextTable"]


@dataclass
class TextTable:
    """Rows of text under named columns.

    Attributes:
        title: the title above the table.
        columns: names of the columns.
        labels: number of columns, from the left, that hold labels. The others hold numbers and are right-aligned.
        rows: the cells of each row.
        weak: indices of rows that fall short of a threshold.
        strong: indices of rows that summarise others.
        sections: indices of rows that end a section.
        caption: the text below the table.
        wrapped: columns whose cells may be wrapped on a narrow terminal.
        texts: columns after the labels that hold text.
    """

    title: str
    columns: Sequence[str]
    labels: int = 1
    rows: list[list[str]] = field(default_factory=list)
    weak: set[int] = field(default_factory=set)
    strong: set[int] = field(default_factory=set)
    sections: set[int] = field(default_factory=set)
    caption: str = ""
    wrapped: Sequence[str] = ()
    texts: Sequence[str] = ()

    def add(self, *cells: str, weak: bool = False, strong: bool = False) -> None:
        """Add a row."""
        if weak:
            self.weak.add(len(self.rows))
        if strong:
            self.strong.add(len(self.rows))
        self.rows.append(list(cells))

    def end_section(self) -> None:
        """Draw a line below the last row."""
        self.sections.add(len(self.rows) - 1)

    def is_number(self, index: int) -> bool:
        """Whether a column holds numbers."""
        return index >= self.labels and self.columns[index] not in self.texts

    def terminal(self) -> Table:
        """The table for the terminal. Weak rows are red, strong rows bold."""
        table = Table(title=self.title, title_justify="left", caption=self.caption or None, caption_justify="left")
        for index, name in enumerate(self.columns):
            justify: Literal["left", "right"] = "right" if self.is_number(index) else "left"
            table.add_column(name, justify=justify, no_wrap=name not in self.wrapped, overflow="fold")
        for number, row in enumerate(self.rows):
            colour = "red" if number in self.weak else ""
            style = "bold" if number in self.strong else ""
            cells = (Text(cell, style=colour) for cell in row)
            table.add_row(*cells, style=style, end_section=number in self.sections)
        return table

    def markdown(self) -> str:
        """The table in GitHub's Markdown. Weak rows are in italics, strong rows in bold."""
        marks = ["--:" if self.is_number(index) else ":--" for index in range(len(self.columns))]
        lines = [f"**{self.title}**", "", _line(self.columns), _line(marks)]
        for number, row in enumerate(self.rows):
            mark = "*" * ((number in self.weak) + 2 * (number in self.strong))
            lines.append(_line([f"{mark}{cell.strip()}{mark}" if cell else cell for cell in row]))
        return "\n".join([*lines, *(["", self.caption] if self.caption else []), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
