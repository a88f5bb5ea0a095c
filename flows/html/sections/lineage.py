"""The artifacts of a run, and what each was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from factsmith.artifacts.manifest import Manifest
from factsmith.artifacts.store import Store
from factsmith.flows.html.blocks import Section
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.pipeline.workspace import StageReport

__all__ = ["lineage"]

_SHORT = 12
"""Digits of a digest that are enough for `factsmith store show`."""


def lineage(store: Store, stages: Sequence[StageReport]) -> Section:
    """One row for each stage."""
    table = TextTable("", ["stage", "artifact", "made", "from"], labels=4)
    for stage in stages:
        manifest = store.manifest(stage.artifact)
        made = f"{datetime.fromisoformat(manifest.created):%Y-%m-%d\u00a0%H:%M}" if manifest else "–"
        table.add(stage.name, stage.artifact, made, _sources(manifest) if manifest else "–")
    about = "`factsmith store show ADDRESS` shows an artifact's recipe, its files and their checksums. Times are UTC."
    return Section("Lineage", [about, table])


def _sources(manifest: Manifest) -> str:
    """What an artifact was made from: the inputs of its recipe by role, or else the artifacts that were read."""
    inputs = manifest.recipe["series"]["inputs"]
    if inputs:
        return ", ".join(f"{role} {digest[:_SHORT]}" for role, digest in inputs.items())
    read = Counter(address.partition("/")[0] for address in manifest.lineage)
    return ", ".join(f"{count} {kind}" for kind, count in read.items())
