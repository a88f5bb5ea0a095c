"""RippleEdits: what else must change, or must not, when a fact is edited (Cohen et al. 2024, section 3).

Each criterion is the share of its tests that the edited model passes. A test counts only if the unedited model answers
the test's conditions right, so a model is not blamed for what it never knew. LG, CI, CII and SA ask for consequences of
the new fact, PV and RS for facts that must stay.

The paper's code generates at least 30 tokens and also searches the prompt for the answer; here 30 tokens are generated,
and only their first line is searched, for whole words. It averages over edits whose fact the edited model gives; here
all edits count, and Fact says how many it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from factsmith.tasks.evaluation.question_sets import QuestionSets

__all__ = ["FAMILY"]


class Ripple(QuestionSets):
    """Accuracy per criterion, and the share of new facts that are given."""

    name = "ripple"
    version = 1
    conditional = True
    parameters: ClassVar[Mapping[str, Any]] = {"tokens": 30}
    metric_of: ClassVar[Mapping[str, str]] = {
        "fact": "Fact",
        "Logical_Generalization": "LG",
        "Compositionality_I": "CI",
        "Compositionality_II": "CII",
        "Subject_Aliasing": "SA",
        "Forgetfulness": "PV",
        "Relation_Specificity": "RS",
    }
    kinds = tuple(metric_of)
    efficacy = ("Fact",)
    metrics: ClassVar[Mapping[str, str]] = {
        "Fact": "new facts that are given",
        "LG": "logical generalisation: related facts that follow",
        "CI": "compositionality I: facts about the new object",
        "CII": "compositionality II: facts of subjects that lead to it",
        "SA": "subject aliasing: the fact under other names",
        "PV": "preservation: other objects of the same relation",
        "RS": "relation specificity: other facts of the subject",
    }

    def counted(self, rows: pa.Table, unedited: pa.Table) -> pa.Table:
        """The rows of sets whose conditions the unedited model answers right."""
        place, checked = ("record", "kind", "set"), ("condition", "correct")
        conditions = (unedited[name].to_pylist() for name in (*place, *checked))
        failed = {tuple(key) for *key, condition, right in zip(*conditions, strict=True) if condition and not right}
        keys = zip(*(rows[name].to_pylist() for name in place), strict=True)
        return rows.filter(pa.array([key not in failed for key in keys], pa.bool_()))


FAMILY = Ripple()
