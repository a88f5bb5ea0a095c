"""The edit request: a fact to write into a model."""

from __future__ import annotations

from dataclasses import dataclass

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.decoder.text import PLACEHOLDER
from factsmith.tasks.decoder.words import Separator, separator_between

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
        separator: what stands between a prompt and its object.
        question: the fact as a question, with ``{}`` in place of the subject, if it is written as one too.
    """

    case_id: int
    subject: str
    template: str
    target_new: str
    target_true: str | None = None
    separator: Separator = "auto"
    question: str | None = None

    @property
    def prompt(self) -> str:
        return self.template.replace(PLACEHOLDER, self.subject, 1)

    @property
    def joined(self) -> str:
        """What stands between the prompt and the new object: one blank or nothing."""
        return separator_between(self.prompt, self.target_new, self.separator)

    @property
    def fact(self) -> dict[str, str]:
        """Subject, template and new object, as columns of tables."""
        return {"subject": self.subject, "template": self.template, "target_new": self.target_new}

    @property
    def digest(self) -> str:
        """Digest of what the value vector depends on. It is equal for two requests that ask for the same thing."""
        # Without a question, artifacts keep the names of earlier versions.
        return (
            self.fact_digest if self.question is None else digest_of({**self._joined_fact, "question": self.question})
        )

    @property
    def fact_digest(self) -> str:
        """Digest of the fact alone, which tells facts apart whatever else they are written as."""
        return digest_of(self._joined_fact)

    @property
    def _joined_fact(self) -> dict[str, str]:
        # With the usual blank, artifacts keep the names of earlier versions.
        return self.fact if self.joined == " " else {**self.fact, "separator": self.joined}
