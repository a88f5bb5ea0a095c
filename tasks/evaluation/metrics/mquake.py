"""MQuAKE: whether a model that was edited also answers multi-hop questions (Zhong et al. 2023, section 3.3).

Edit-wise is the share of edited facts that the model recalls. Instance-wise is the share of instances whose facts it
recalls all, those of the chain that were not edited included. Multi-hop is the share of instances of which it answers
one of the three multi-hop questions with the new answer or an alias.

As in the paper, an edited fact is asked with the statement that was written, and other facts and multi-hop questions
are asked as questions after examples. The paper has eight examples for each relation, and others for multi-hop
questions. Here the same four, of our own wording, go before every question. The paper does not say how an answer is
compared; here it has to contain the answer as whole words (``question_sets.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from factsmith.tasks.evaluation.question_sets import EXAMPLES, QuestionSets

__all__ = ["FAMILY"]


class MQuAKE(QuestionSets):
    """Edit-wise, instance-wise and multi-hop accuracy."""

    name = "mquake"
    version = 1
    parameters: ClassVar[Mapping[str, Any]] = {"tokens": 20, "examples": EXAMPLES}
    metric_of: ClassVar[Mapping[str, str]] = {"edit": "Edit-wise", "hops": "Instance-wise", "multi_hop": "Multi-hop"}
    kinds = tuple(metric_of)
    efficacy = ("Edit-wise",)
    metrics: ClassVar[Mapping[str, str]] = {
        "Edit-wise": "edited facts that are recalled",
        "Instance-wise": "instances whose facts are all recalled",
        "Multi-hop": "instances with a right answer to a multi-hop question",
    }


FAMILY = MQuAKE()
