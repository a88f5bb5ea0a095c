"""The settings of a run, where they come from, and the command that repeats it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from factsmith.flows.configuration.keys import describe_settings, setting_values
from factsmith.flows.configuration.origins import DEFAULT, GIVEN, origins
from factsmith.flows.html.blocks import Block, Folded, Section, Verbatim
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.planning.settings import Settings

__all__ = ["command", "settings"]


def command(flow: str, arguments: Sequence[str]) -> Verbatim:
    """A command line."""
    return Verbatim(shlex.join(["factsmith", flow, *arguments]))


def settings(given: Settings, repeated: Verbatim | None, only: Collection[str] | None = None) -> Section:
    """The settings that a run reads.

    Args:
        given: the settings.
        repeated: the command that repeats the run, if there is one.
        only: names of the settings to show, if not all.
    """
    meanings = dict(describe_settings())
    values = dict(setting_values(given.model_dump(mode="json")))
    found = {name: origin for name, origin in origins(given).items() if only is None or name in only}
    # The cells of a sweep may have the same value from different choices.
    columns = ["setting", "value", *(["from"] if only is None else []), "meaning"]
    table = TextTable("", columns, labels=len(columns), caption="bold: what was given")
    usual = TextTable("", ["setting", "value", "meaning"], labels=3)
    for name, origin in sorted(found.items(), key=lambda one: one[1] != GIVEN):  # What was given comes first.
        row = [name, _text(values[name]), *([origin] if only is None and origin != DEFAULT else []), meanings[name]]
        if origin == DEFAULT:
            usual.add(*row)
        elif not name.endswith(".name"):
            table.add(*row, strong=origin == GIVEN)
    blocks: list[Block] = [table, Folded(f"{len(usual.rows)} settings with their defaults", usual)]
    if repeated is not None:
        blocks = ["Repeat it with:", repeated, *blocks]
    return Section("Settings", blocks)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
