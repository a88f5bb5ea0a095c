"""Portability: does a model that was told a fact say what follows from it?

Por is the share of the tokens of a portability question's answer that are the model's first choice, under teacher
forcing. Records without such a question do not count.  [Yao et al. 2023, section 5.1; accuracy as in their EasyEdit]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from factsmith.tasks.evaluation.answers import AnswerAccuracy

__all__ = ["FAMILY"]


class Portability(AnswerAccuracy):
    """Por."""

    name = "portability"
    version = 1
    metric_of: ClassVar[Mapping[str, str]] = {"portability": "Por"}
    kinds = tuple(metric_of)
    metrics: ClassVar[Mapping[str, str]] = {"Por": "portability: tokens of what follows that come first"}


FAMILY = Portability()
