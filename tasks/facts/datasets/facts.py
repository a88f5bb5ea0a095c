"""A file of facts of one's own, in CounterFact's words without its nesting.

The file is a JSON list, JSON lines (``.jsonl``) or a table (``.csv``, ``.tsv``). A record needs ``subject``, ``prompt``
(the subject in it, or ``{}`` in its place) and ``target_new``. It may add ``target_true``, ``paraphrase_prompts``,
``neighborhood_prompts`` and ``portability`` to be scored with, and whatever else it likes. In a table, prompts that
share a cell are apart by ``|``. Records of CounterFact's own schema are read too.
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
    """Records of a facts file.

    Raises:
        InputError: names the file, the index and the field that is wrong, or two facts that contradict each other.
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
    """A target, as text or as CounterFact's ``{"str": text}``."""
    return raw.text(name, "str") if isinstance(raw.fields.get(name), dict) else raw.text(name)
