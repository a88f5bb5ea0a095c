"""A record of a dataset: a request, and prompts that tell how well it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.facts.request import EditRequest

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """One request with its scoring prompts.

    Attributes:
        request: what to write.
        prompts: by kind. ``rewrite`` and ``paraphrase`` ask for the request's targets, ``neighborhood`` asks of other
            subjects, ``portability`` asks for what follows from the new fact, ``generation`` is to be gone on from.
        place: where it stands, for messages: its index in the file or dataset.
        answers: by kind, what is right behind each of its prompts, for kinds whose answers are not the request's
            targets.
        relation: names what is said of the subject, where the dataset knows: two prompts may ask for the same.
    """

    request: EditRequest
    prompts: Mapping[str, tuple[str, ...]]
    place: int = field(compare=False)
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    relation: str | None = None

    def digest(self, kinds: Sequence[str]) -> str:
        """Names all that a score on prompts of some kinds depends on, besides the model and the metric."""
        return digest_of(
            {
                "case_id": self.request.case_id,
                "prompts": {kind: list(self.prompts.get(kind, ())) for kind in kinds},
                "answers": {kind: list(self.answers[kind]) for kind in kinds if kind in self.answers},
                "targets": [self.request.target_new, self.request.target_true],
            }
        )
