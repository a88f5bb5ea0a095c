"""zsRE with portability questions (Yao et al. 2023). They ask about consequences of ``alt``, so ``alt`` is written.

The false answer ``alt`` replaces the first of ``answers``, which these questions do not depend on. Scores on these
records are therefore not scores on zsRE.
"""

from __future__ import annotations

from dataclasses import replace

from factsmith.tasks.facts.datasets import zsre
from factsmith.tasks.facts.datasets.counterfact import portability
from factsmith.tasks.facts.reading import RawRecord, parse_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load"]


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a zsRE file in which every record has ``alt`` and ``portability``.

    Raises:
        InputError: a field is missing or wrong. The message names the file, the index and the field.
    """
    return parse_records(settings.required_path(), _parse, unused=zsre.UNUSED)


def _parse(raw: RawRecord) -> Record:
    record = zsre.parse(raw, raw.text("alt"))
    question, answer = portability(raw)
    return replace(
        record,
        prompts={**record.prompts, "portability": (question,)},
        answers={**record.answers, "portability": (answer,)},
    )
