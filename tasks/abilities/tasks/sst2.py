"""SST-2: is a sentence of a film review positive?  [Socher et al. 2013; Wang et al. 2018, GLUE]"""

from __future__ import annotations

from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim
from factsmith.tasks.facts.reading import RawRecord

__all__ = ["TASK"]


class Sst2(AbilityTask):
    """Label 0 is negative, 1 is positive."""

    name = "sst2"
    title = "SST-2"
    labels = ("negative", "positive")
    hub = HubSplit("nyu-mll/glue", "sst2", "validation")

    def parse(self, raw: RawRecord) -> Example:
        return Example(f"Review :{verbatim(raw, 'sentence')}\nSentiment :", label_index(raw, "label", (0, 1)))


TASK = Sst2()
