"""From sections to HTML.

A report is one file. Its style and its script are in it, and a Content-Security-Policy allows nothing else: neither
requests nor other scripts. All text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from factsmith.flows.html.blocks import Block, Charts, FactTable, Folded, Headline, ScoreTable, Section, Verbatim
from factsmith.flows.html.numbers import interval, percent
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.tracking.runs import REPORT_MARK

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Document", "render"]

_TEMPLATES: Mapping[type[Block], str] = {
    str: "paragraph",
    Charts: "charts",
    Verbatim: "verbatim",
    FactTable: "facts",
    Folded: "folded",
    ScoreTable: "scores",
    TextTable: "table",
}


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: what was done.
        about: what else is to know at once, by name.
        headlines: the numbers that say how it went.
        sections: the sections, in order.
    """

    title: str
    about: Mapping[str, str]
    headlines: Sequence[Headline]
    sections: Sequence[Section]


def render(document: Document) -> str:
    """The HTML text of a report."""
    environment = _environment()
    assert environment.loader is not None
    style, script = (environment.loader.get_source(environment, name)[0] for name in ("report.css", "report.js"))
    return environment.get_template("page.html").render(
        document=document, style=style, script=script, policy=_policy(style, script), mark=REPORT_MARK
    )


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this style and this script, and nothing else."""
    allowed = f"style-src {_hash(style)}; script-src {_hash(script)}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("factsmith.flows.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval, "slug": _slug}
    environment.globals["template_of"] = lambda block: f"{_TEMPLATES[type(block)]}.html"
    return environment


def _slug(title: str) -> str:
    """The title as the name of an anchor."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
