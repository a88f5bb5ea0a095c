"""NLI: the examples of RTE's training split in another prompt.  [Dagan et al. 2006; Gupta et al. 2024]"""

from __future__ import annotations

from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim
from factsmith.tasks.facts.reading import RawRecord

__all__ = ["TASK"]


class Nli(AbilityTask):
    """Labels are ``entailment`` and ``not_entailment``, or 0 and 1, as in GLUE."""

    name = "nli"
    title = "NLI"
    labels = ("True", "False")
    hub = HubSplit("nyu-mll/glue", "rte", "train")
    unused = ("idx", "index")

    def parse(self, raw: RawRecord) -> Example:
        text, hypothesis = verbatim(raw, "sentence1"), verbatim(raw, "sentence2")
        prompt = f"{text} entails the {hypothesis} True or False? Answer:"
        label = label_index(raw, "label", ("entailment", "not_entailment", 0, 1))
        return Example(prompt, label % len(self.labels))


TASK = Nli()
