"""What to write into a model."""

from __future__ import annotations

from dataclasses import dataclass

from factsmith.tasks.decoder.text import PLACEHOLDER

__all__ = ["EditRequest"]


@dataclass(frozen=True)
class EditRequest:
    """One fact to write.

    Attributes:
        case_id: names the fact in tables and messages.
        subject: what the fact is about.
        template: the prompt, with ``{}`` where the subject goes.
        target_new: the object the prompt is to be continued with.
        target_true: the object it is continued with today, if that is known.
    """

    case_id: int
    subject: str
    template: str
    target_new: str
    target_true: str | None = None

    @property
    def prompt(self) -> str:
        return self.template.replace(PLACEHOLDER, self.subject, 1)

    @property
    def fact(self) -> dict[str, str]:
        """What the value vector depends on: the same for two requests that ask for the same thing."""
        return {"subject": self.subject, "template": self.template, "target_new": self.target_new}
