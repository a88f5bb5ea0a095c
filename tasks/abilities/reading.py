"""The examples of a task: from the user's folder, or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.abilities.settings import AbilitySettings
from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit
from factsmith.tasks.corpus.hub_dataset import find_dataset
from factsmith.tasks.corpus.sources.hub import parquet_rows
from factsmith.tasks.facts.reading import RawRecord, parse_raw, parse_records

__all__ = ["select_examples"]


def select_examples(task: AbilityTask, settings: AbilitySettings) -> list[Example]:
    """The examples that the settings select: ``abilities.examples`` of them, drawn by ``abilities.seed``.

    Raises:
        InputError: they cannot be read, or one of them cannot be used. The message names its place.
    """
    if settings.path is not None:
        path = settings.path.expanduser() / f"{task.name}.jsonl"
        found = parse_records(path, task.parse, unused=task.unused)
    else:
        where = str(task.hub)
        raws = (RawRecord(where, index, row) for index, row in enumerate(_hub_rows(task.hub)))
        try:
            found = parse_raw(raws, where, task.parse, unused=task.unused)
        except InputError as error:
            remedy = f"set abilities.path to a folder with {task.name}.jsonl"
            raise InputError(error.what, **{**error.details, "remedy": remedy}) from None
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return [found[place] for place in order[: settings.examples]]


def _hub_rows(split: HubSplit) -> Iterator[dict[str, Any]]:
    """The rows of a split on the hub.

    Raises:
        InputError: the hub does not answer, or does not have the split.
    """
    dataset = find_dataset(split.repository, None, setting="abilities.path")
    builder = dataset.open(split.subset)
    files = [str(file) for file in (builder.config.data_files or {}).get(split.split, ())]
    if not files:
        raise InputError(f"The dataset {split.repository} has no split {split.split!r}.")
    dataset.check_complete(files)
    with dataset.errors_explained():
        if all(file.endswith(".parquet") for file in files):
            yield from parquet_rows(files)
        else:
            yield from builder.as_streaming_dataset(split.split)
