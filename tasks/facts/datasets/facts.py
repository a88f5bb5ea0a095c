"""A user's own file of facts, with CounterFact's field names but without its nesting.

The file is a JSON list, JSON lines (``.jsonl``) or a table (``.csv``, ``.tsv``). A record needs ``subject``, ``prompt``
(which contains the subject, or ``{}`` in its place) and ``target_new``. For scoring, it may add ``target_true``,
``paraphrase_prompts``, ``neighborhood_prompts`` and ``portability``. Other fields are ignored, unless they look like a
misspelt known one. In a table, prompts in one cell are separated by ``|``. Records in CounterFact's own schema are read
too.
"""

from __future__ import annotations

from factsmith.tasks.facts.conflicts import refuse_conflicts
from factsmith.tasks.facts.datasets import counterfact
from factsmith.tasks.facts.reading import RawRecord, read_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load"]

_FIELDS = {
    "case_id",
    "subject",
    "prompt",
    "target_new",
    "target_true",
    "paraphrase_prompts",
    "neighborhood_prompts",
    "requested_rewrite",
}


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a facts file.

    Raises:
        InputError: a field is missing or wrong, or two facts contradict each other. The message names the file, the
            index and the field, or both facts.
    """
    path = settings.required_path()
    records = [_parse(raw) for raw in read_records(path)]
    refuse_conflicts(records, path)
    return records


def _parse(raw: RawRecord) -> Record:
    raw.known_fields(_FIELDS)
    if "requested_rewrite" in raw.fields:
        return counterfact.parse(raw)
    subject = raw.text("subject").strip()
    request = EditRequest(
        case_id=raw.index,
        subject=subject,
        template=raw.template(raw.text("prompt").strip(), subject),
        target_new=_target(raw, "target_new"),
        target_true=_target(raw, "target_true") if raw.fields.get("target_true") is not None else None,
    )
    return counterfact.scored(raw, request)


def _target(raw: RawRecord, name: str) -> str:
    """A target, given as text or as CounterFact's ``{"str": text}``."""
    return raw.text(name, "str") if isinstance(raw.fields.get(name), dict) else raw.text(name)
