"""Names of repositories on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub import constants

__all__ = ["Repository", "is_identifier"]

_IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_identifier(name: str) -> bool:
    """Whether ``name`` has the form ``owner/name`` of a repository on the hub."""
    return _IDENTIFIER.fullmatch(name) is not None


@dataclass(frozen=True)
class Repository:
    """A repository that the settings name. It may not exist.

    Attributes:
        kind: ``model`` or ``dataset``.
        identifier: ``owner/name``.
        revision: branch, tag or commit; ``None`` for the main branch.
        setting: the setting that gives ``identifier`` or a local folder, such as ``model.path``. ``revision`` is a
            setting of the same group.
    """

    kind: str
    identifier: str
    revision: str | None
    setting: str

    def __str__(self) -> str:
        return f"{self.kind} {self.identifier}"

    @property
    def page(self) -> str:
        """URL of the repository's web page."""
        return f"{constants.ENDPOINT}/{'' if self.kind == 'model' else self.kind + 's/'}{self.identifier}"

    @property
    def download(self) -> str:
        """The command that downloads the repository on a machine that can reach the hub."""
        kind = "" if self.kind == "model" else f" --repo-type {self.kind}"
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"`hf download {self.identifier}{kind}{revision} --local-dir DIR`"
