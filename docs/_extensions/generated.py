"""Pages that are made from the code when the site is built: settings, choices, commands, and the notebook as a page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

__all__ = ["cli_page", "notebook_page", "settings_page", "setup"]

FOLDER = "generated"
"""The folder of the pages below ``docs``. Git ignores it."""

NOTEBOOK = "how-to/notebook.ipynb"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", _write)
    app.connect("source-read", _to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Sphinx) -> None:
    source = Path(app.srcdir)
    (source / FOLDER).mkdir(exist_ok=True)
    for name, text in {
        "settings": settings_page(),
        "commands": cli_page(),
        "notebook": notebook_page(source / NOTEBOOK),
    }.items():
        path = source / FOLDER / f"{name}.md"
        if not path.is_file() or path.read_text() != text:  # Otherwise Sphinx would read it again.
            path.write_text(text)


_PAGES = {"how-to/notebook.ipynb": f"{FOLDER}/notebook.md", "../CONTRIBUTING.md": "contributing.md"}
"""Files that the site has as pages under another name. On GitHub, links lead to the files."""


def _to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Make links to files lead to the pages that are made from them."""
    folder = os.path.dirname(page)

    def page_of(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, link[1]))
        return f"]({os.path.relpath(_PAGES[target], folder or '.')})" if target in _PAGES else link[0]

    source[0] = re.sub(r"\]\(([^)\s]+\.(?:md|ipynb))\)", page_of, source[0])


# ---------------------------------------------------------------------------------------------------------- settings

_MEANINGS = {
    "model": "the model to edit",
    "corpus": "the text whose keys an edit must preserve",
    "method": "how facts are written",
    "dataset": "the facts to write, and the metrics that score them",
    "abilities": "what the model can do besides recalling facts",
    "drift": "what an edit does to text that is not about the facts",
    "trace": "causal tracing, which `factsmith locate` does",
    "runtime": "how things are computed; nothing here changes a result by more than the last bits of a float",
    "tracking": "where runs are logged",
}


_SETTINGS = """\
# Settings and choices

This page is made from the code. `factsmith conf` prints the same, and `factsmith conf method.value` one section.

A setting is given as `name=value`. What a user gives and a run would not read is refused. *Read with* says when a
setting is read; without an entry, every run of its commands reads it. A choice may set a value that differs from the
default."""


def settings_page() -> str:
    """All settings: their meanings, their defaults, and when a run reads them; then all choices."""
    from factsmith.flows.configuration.choices import EXPERIMENT, GROUPS, choices
    from factsmith.flows.configuration.keys import describe_settings, setting_defaults
    from factsmith.flows.configuration.unread import read_when

    defaults = setting_defaults()
    lines = [_SETTINGS]
    group = None
    for name, meaning in describe_settings():
        if (now := name.partition(".")[0]) != group:
            group = now
            lines += ["", f"## {group}", "", f"{_MEANINGS.get(group, '')}", ""]
            lines += ["| setting | meaning | default | read with |", "|---|---|---|---|"]
        default = f"`{_shown(defaults[name])}`" if name in defaults else "must be given"
        lines.append(f"| `{name}` | {_cell(meaning)} | {_cell(default)} | {_cell('; '.join(read_when(name)))} |")
    for group in (*GROUPS, EXPERIMENT):
        lines += ["", f"## Choices of {group}", "", f"| `{group}=` | |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(comment)} |" for name, comment in choices(group).items()]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    from pydantic_core import to_jsonable_python

    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def _cell(text: str) -> str:
    """Text of a cell of a table. What Markdown would read as something else is escaped."""
    outside = True
    found = []
    for letter in text:
        if letter == "`":
            outside = not outside
        found.append(f"\\{letter}" if letter == "|" or (outside and letter in "<>[]{}*_$#") else letter)
    return "".join(found).replace("\n", " ")


# ----------------------------------------------------------------------------------------------------------- commands


def cli_page() -> str:
    """All commands with their arguments and options."""
    from typer.main import get_command

    from factsmith.flows.cli.main import app

    lines = [
        "# Commands",
        "",
        "This page is made from the code. `factsmith COMMAND --help` prints the same.",
        "",
        "The exit code is 0 for success, 1 for a bug in Factsmith, 2 for unusable input, and 130 after Ctrl-C.",
        "",
    ]
    for path, command in _commands("factsmith", get_command(app)):
        context = command.context_class(command, info_name=path)
        lines += [f"## {path}", "", (command.help or "").strip(), ""]
        arguments = [one.metavar or one.name.upper() for one in command.params if not one.opts[0].startswith("-")]
        lines += ["```text", " ".join([path, "[OPTIONS]", *arguments]), "```", ""]
        rows = [one.get_help_record(context) for one in command.params if not getattr(one, "hidden", False)]
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [*(f"| `{_named(one)}` | {_cell(text)} |" for one, text in filter(None, rows)), ""]
    return "\n".join(lines)


def _named(parameter: str) -> str:
    """The names of a parameter without a type that says nothing, such as a list of texts."""
    return re.sub(r" <(list\[str\]|str)>$", "", parameter)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, one in inner.items():
        yield from _commands(f"{path} {name}", one)


# ----------------------------------------------------------------------------------------------------------- notebook


def notebook_page(path: Path) -> str:
    """A notebook as a page: text as it is, code and what it printed as blocks."""
    lines = [f"% Made from {NOTEBOOK}.", ""]
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
            continue
        lines += ["```python", text, "```", ""]
        printed = "".join(
            "".join(one.get("text") or one.get("data", {}).get("text/plain", "")) for one in cell["outputs"]
        )
        if printed.strip():
            lines += ["```text", printed.rstrip("\n"), "```", ""]
    return "\n".join(lines)
