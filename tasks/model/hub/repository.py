"""What the user has named on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub import constants

__all__ = ["Repository", "is_identifier"]

_IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_identifier(name: str) -> bool:
    """Whether ``name`` could be ``owner/name`` on the hub."""
    return _IDENTIFIER.fullmatch(name) is not None


@dataclass(frozen=True)
class Repository:
    """What the user has named.

    Attributes:
        kind: ``model`` or ``dataset``.
        identifier: ``owner/name``.
        revision: branch, tag or commit; ``None`` for the main branch.
        setting: where the user says so (``model.path``), or names a folder instead; ``revision`` stands beside it.
    """

    kind: str
    identifier: str
    revision: str | None
    setting: str

    def __str__(self) -> str:
        return f"{self.kind} {self.identifier}"

    @property
    def page(self) -> str:
        """Where a browser finds it."""
        return f"{constants.ENDPOINT}/{'' if self.kind == 'model' else self.kind + 's/'}{self.identifier}"

    @property
    def download(self) -> str:
        """How to get the repository on a machine that reaches the hub."""
        kind = "" if self.kind == "model" else f" --repo-type {self.kind}"
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"`hf download {self.identifier}{kind}{revision} --local-dir DIR`"
