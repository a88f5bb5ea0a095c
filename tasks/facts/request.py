"""The edit request: a fact to write into a model."""

from __future__ import annotations

from dataclasses import dataclass

from factsmith.tasks.decoder.text import PLACEHOLDER

__all__ = ["EditRequest"]


@dataclass(frozen=True)
class EditRequest:
    """One fact to write.

    Attributes:
        case_id: number of the fact in tables and messages.
        subject: the subject of the fact.
        template: the prompt, with ``{}`` in place of the subject.
        target_new: the new object: the continuation of the prompt after the edit.
        target_true: the true object: the continuation before the edit, if it is known.
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
        """The fields that the value vector depends on. They are equal for two requests that ask for the same thing."""
        return {"subject": self.subject, "template": self.template, "target_new": self.target_new}
