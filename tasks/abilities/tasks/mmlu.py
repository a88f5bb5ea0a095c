"""MMLU: exam questions with four choices.  [Hendrycks et al. 2021]"""

from __future__ import annotations

from factsmith.tasks.abilities.task import AbilityTask, Example, HubSplit, label_index, verbatim
from factsmith.tasks.facts.reading import RawRecord

__all__ = ["TASK"]


class Mmlu(AbilityTask):
    """The label is the index of the correct choice. Its letter is capital, because ``a`` is also an article."""

    name = "mmlu"
    title = "MMLU"
    labels = ("A", "B", "C", "D")
    any_case = False
    most_generated = 10
    hub = HubSplit("cais/mmlu", "all", "test")
    unused = ("subject",)

    def parse(self, raw: RawRecord) -> Example:
        choices = raw.value("choices")
        if not isinstance(choices, list) or [type(one) for one in choices] != [str] * len(self.labels):
            raise raw.error("field 'choices' is not a list of four texts", got=ascii(choices)[:80])
        listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(self.labels, choices, strict=True))
        prompt = f"Question: {verbatim(raw, 'question')}\n{listed}\nAnswer:"
        return Example(prompt, label_index(raw, "answer", range(len(self.labels))))


TASK = Mmlu()
