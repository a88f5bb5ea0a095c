"""zsRE's metrics: the share of an answer's tokens that are the model's first choice, under teacher forcing.

Eff is measured on the new answer to the question that was written, Gen on the new answer to the same question in other
words, and Spe on the correct answer to an unrelated question. H is their harmonic mean. If several tokens are equally
likely, the first choice is the one with the lowest token id. Means are taken over a prompt's tokens, then within a
record, then over records.
[Meng et al. 2022b, section 5.2.1; answers and questions as in their code]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from factsmith.tasks.evaluation.answers import AnswerAccuracy

__all__ = ["FAMILY"]


class ZsRE(AnswerAccuracy):
    """Eff, Gen and Spe. Neighbourhood questions whose answer is not known are not asked."""

    name = "zsre"
    version = 1
    metric_of: ClassVar[Mapping[str, str]] = {"rewrite": "Eff", "paraphrase": "Gen", "neighborhood": "Spe"}
    kinds = tuple(metric_of)
    efficacy = ("Eff",)
    metrics: ClassVar[Mapping[str, str]] = {
        "Eff": "efficacy: share of correct answer tokens",
        "Gen": "generalisation: the same for paraphrased questions",
        "Spe": "specificity: the same for unrelated questions",
        "H": "harmonic mean of Eff, Gen and Spe",
    }
    mean = ("H", ("Eff", "Gen", "Spe"))


FAMILY = ZsRE()
