"""MRPC: do two sentences say the same?  [Dolan and Brockett 2005; Wang et al. 2018, GLUE]"""

from __future__ import annotations

from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim
from factsmith.tasks.facts.reading import RawRecord

__all__ = ["TASK"]


class Mrpc(AbilityTask):
    """Label 1 is a paraphrase, 0 is none."""

    name = "mrpc"
    title = "MRPC"
    labels = ("No", "Yes")
    hub = HubSplit("nyu-mll/glue", "mrpc", "validation")

    def parse(self, raw: RawRecord) -> Example:
        first, second = verbatim(raw, "sentence1"), verbatim(raw, "sentence2")
        prompt = f"Are the sentences paraphrases of each other.\nSentence 1: {first}\nSentence 2: {second}\nAnswer:"
        return Example(prompt, label_index(raw, "label", (0, 1)))


TASK = Mrpc()
