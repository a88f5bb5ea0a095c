"""A user's own file of facts, with CounterFact's field names but without its nesting.

The file is a JSON list, JSON lines or a table (``.csv``, ``.tsv``). A record needs ``subject``, ``prompt`` and
``target_new``. The prompt contains the subject as whole words, or ``{}`` in its place. For scoring, a record may add
``target_true``, ``paraphrase_prompts``, ``neighborhood_prompts``, ``generation_prompts``, ``portability`` and
``questions`` (the fact as a question, and that question in other words; each with the subject or ``{}``). A warning
names other fields. One that looks like a misspelt known field is refused. In a table, prompts in one cell are separated
by ``|``. Records in CounterFact's own schema are read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.conflicts import refuse_conflicts
from factsmith.tasks.facts.datasets import counterfact, easyedit
from factsmith.tasks.facts.reading import RawRecord, parse_raw, parse_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load", "of_objects"]

_GIVEN = "the given facts"

_OTHERS = {"easyedit": easyedit.FIELDS}


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a facts file.

    Raises:
        InputError: a field is missing or wrong, or two facts contradict each other. The message names the file, the
            index and the field, or both facts.
    """
    path = settings.required_path()
    records = parse_records(path, _parse, unused=counterfact.UNUSED, others=_OTHERS)
    refuse_conflicts(records, path)
    return counterfact.with_questions(records)


def of_objects(objects: Sequence[Mapping[str, Any]]) -> list[Record]:
    """The records of facts that are objects with the fields of a facts file.

    Raises:
        InputError: as in ``load``. The message names the index and the field, or both facts.
    """
    if not isinstance(objects, Sequence) or isinstance(objects, str) or not objects:
        raise InputError(
            "The facts are not a list of facts.", got=repr(objects)[:200], expected="a list of dicts, with at least one"
        )
    for index, one in enumerate(objects):
        if not isinstance(one, Mapping):
            raise RawRecord(_GIVEN, index, {}).error("it is not an object", got=repr(one)[:200], expected="a dict")
    raws = (RawRecord(_GIVEN, index, one) for index, one in enumerate(objects))
    records = parse_raw(raws, _GIVEN, _parse, unused=counterfact.UNUSED, others=_OTHERS)
    refuse_conflicts(records, _GIVEN)
    return counterfact.with_questions(records)


def _parse(raw: RawRecord) -> Record:
    if raw.value("requested_rewrite") is not None:
        return counterfact.parse(raw)
    raw.value("case_id")  # The index takes its place: ids of several files may be the same.
    subject = raw.text("subject")
    request = EditRequest(
        case_id=raw.index,
        subject=subject,
        template=raw.template(raw.text("prompt"), subject),
        target_new=raw.target("target_new") or raw.text("target_new"),
        target_true=raw.target("target_true"),
    )
    return counterfact.scored(raw, request)
