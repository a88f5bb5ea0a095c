"""The code in README, CONTRIBUTING and docs: blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.conftest import ROOT

__all__ = ["Block", "Command", "blocks", "commands", "pages"]

PROGRAMS = ("factsmith", "make", "python", "python3", "pip", "export", "prefect")
"""What the first word of a command is, without its folder. Other code without a language is no command."""


@dataclass(frozen=True)
class Block:
    """Code in a page.

    Attributes:
        page: the file, relative to the repository.
        line: its first line, from 1.
        language: of the fence; empty if there is none.
        text: the code.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command in a page.

    Attributes:
        place: the page and the line of its block.
        words: its words. The first is the program, without its folder.
    """

    place: str
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        return " ".join(self.words)


def pages() -> list[Path]:
    """All pages that people read, without those that are made from the code."""
    found = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "generated" not in path.parts]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *found]


def blocks(path: Path) -> list[Block]:
    """The blocks of code in a page, fenced or indented."""
    page = path.relative_to(ROOT).as_posix()
    return [
        Block(page, (token.map or [0])[0] + 1, token.info.strip().partition(" ")[0], token.content)
        for token in MarkdownIt("commonmark").enable("table").parse(path.read_text())
        if token.type in ("fence", "code_block") and not token.info.startswith("{")
    ]


def commands() -> Iterator[Command]:
    """The commands of all pages: of blocks in a shell's language, and of blocks without one that hold commands."""
    for path in pages():
        for block in blocks(path):
            if block.language not in ("", "bash", "sh", "shell", "console"):
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                plain = re.sub(r"^\s*([A-Z_]+=\S*\s+)*", "", line)  # without variables of the environment
                if plain.partition(" ")[0].rpartition("/")[2] in PROGRAMS:
                    program, *rest = shlex.split(plain, comments=True)
                    yield Command(block.place, (program.rpartition("/")[2], *rest))
