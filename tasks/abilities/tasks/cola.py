"""CoLA: is a sentence grammatical?  [Warstadt et al. 2019; Wang et al. 2018, GLUE]"""

from __future__ import annotations

from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim
from factsmith.tasks.facts.reading import RawRecord

__all__ = ["TASK"]


class Cola(AbilityTask):
    """Label 1 is acceptable, 0 is not."""

    name = "cola"
    title = "CoLA"
    labels = ("No", "Yes")
    most_generated = 10
    hub = HubSplit("nyu-mll/glue", "cola", "validation")

    def parse(self, raw: RawRecord) -> Example:
        sentence = verbatim(raw, "sentence")
        prompt = f"Is this sentence linguistically acceptable?\nSentence: {sentence}\nAnswer:"
        return Example(prompt, label_index(raw, "label", (0, 1)))


TASK = Cola()
