"""A record of a dataset: a request, and prompts that tell how well it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from factsmith.artifacts.recipe import digest_of
from factsmith.tasks.editing.request import EditRequest

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """One request with its scoring prompts.

    Attributes:
        request: what to write.
        prompts: by kind (``rewrite``, ``paraphrase``, ``neighborhood``), prompts that are continued with the
            request's targets.
        place: where it stands, for messages: its index in the file or dataset.
    """

    request: EditRequest
    prompts: Mapping[str, tuple[str, ...]]
    place: int = field(compare=False)

    @cached_property
    def digest(self) -> str:
        """Names everything a score of this record depends on, besides the model and the metric."""
        return digest_of(
            {
                "case_id": self.request.case_id,
                "prompts": {kind: list(prompts) for kind, prompts in self.prompts.items()},
                "targets": [self.request.target_new, self.request.target_true],
            }
        )
