"""Portability: whether a model also knows what follows from a fact that was written.

Por is the share of tokens of the answer to a portability question that are the model's first choice, under teacher
forcing. Records without such a question do not count.  [Yao et al. 2023, section 5.1; accuracy as in their EasyEdit]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from factsmith.tasks.evaluation.answers import AnswerAccuracy

__all__ = ["FAMILY"]


class Portability(AnswerAccuracy):
    """The metric Por."""

    name = "portability"
    version = 1
    metric_of: ClassVar[Mapping[str, str]] = {"portability": "Por"}
    kinds = tuple(metric_of)
    metrics: ClassVar[Mapping[str, str]] = {"Por": "portability: share of correct tokens, implied facts"}


FAMILY = Portability()
