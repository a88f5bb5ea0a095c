"""zsRE with portability questions (Yao et al. 2023): they follow from ``alt``, so that is what is written.

The false answer ``alt`` takes the place of the first of ``answers``, of which these questions know nothing. Scores on
these records are therefore no scores on zsRE.
"""

from __future__ import annotations

from dataclasses import replace

from factsmith.tasks.facts.datasets import zsre
from factsmith.tasks.facts.datasets.counterfact import portability
from factsmith.tasks.facts.reading import read_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load"]


def load(settings: DatasetSettings) -> list[Record]:
    """Records of a zsRE file of which each has ``alt`` and ``portability``.

    Raises:
        InputError: names the file, the index and the field that is wrong.
    """
    records = []
    for raw in read_records(settings.required_path()):
        record = zsre.parse(raw, raw.text("alt"))
        question, answer = portability(raw)
        records.append(
            replace(
                record,
                prompts={**record.prompts, "portability": (question,)},
                answers={**record.answers, "portability": (answer,)},
            )
        )
    return records
