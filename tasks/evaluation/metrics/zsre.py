"""zsRE's metrics: the share of an answer's tokens that are the model's first choice, under teacher forcing.

Eff: the new answer, to the question that was written; Gen: to the same question in other words; Spe: the right answer
to a question of something else. H is their harmonic mean. Among tokens that are equally likely, the first choice is the
one that comes first in the vocabulary. Means are taken over a prompt's tokens, then within a record, then over records.
[Meng et al. 2022b, section 5.2.1; answers and questions as in their code]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from factsmith.tasks.evaluation.answers import AnswerAccuracy

__all__ = ["FAMILY"]


class ZsRE(AnswerAccuracy):
    """Eff, Gen and Spe. Neighbours of which nothing is known to be right are not asked."""

    name = "zsre"
    version = 1
    metric_of: ClassVar[Mapping[str, str]] = {"rewrite": "Eff", "paraphrase": "Gen", "neighborhood": "Spe"}
    kinds = tuple(metric_of)
    metrics: ClassVar[Mapping[str, str]] = {
        "Eff": "efficacy: tokens of the new answer that come first",
        "Gen": "generalisation: so they do in other words",
        "Spe": "specificity: tokens of other questions' answers that do",
        "H": "harmonic mean of the three",
    }
    mean = ("H", ("Eff", "Gen", "Spe"))


FAMILY = ZsRE()
