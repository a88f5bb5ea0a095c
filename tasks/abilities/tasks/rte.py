"""RTE: does a text entail a hypothesis?  [Dagan et al. 2006; Wang et al. 2018, GLUE]"""

from __future__ import annotations

from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim
from factsmith.tasks.facts.reading import RawRecord

__all__ = ["TASK"]


class Rte(AbilityTask):
    """Label 0 is entailment, 1 is none, as in GLUE.

    The evaluation code of AlphaEdit reads the labels the other way round, so its accuracy by likelihood is 100 percent
    minus ours.
    """

    name = "rte"
    title = "RTE"
    labels = ("True", "False")
    hub = HubSplit("nyu-mll/glue", "rte", "validation")

    def parse(self, raw: RawRecord) -> Example:
        text, hypothesis = verbatim(raw, "sentence1"), verbatim(raw, "sentence2")
        prompt = f"{text}\nquestion: {hypothesis} True or False?\nanswer:"
        return Example(prompt, label_index(raw, "label", (0, 1)))


TASK = Rte()
