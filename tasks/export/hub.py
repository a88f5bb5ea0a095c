"""Exports on the hub: the checks before anything long starts, and the upload of a finished folder as one commit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from factsmith.artifacts.errors import InputError, first_line
from factsmith.tasks.model.hub.repository import Repository, is_identifier
from factsmith.tasks.model.hub.retry import with_retries

__all__ = ["Push", "check_push", "push_folder"]

logger = logging.getLogger(__name__)

MARK = "factsmith.json"
"""The file that says that a repository holds an export."""

_ANY = {".gitattributes", "README.md", "LICENSE"}
"""Files that a new repository may have."""


@dataclass(frozen=True)
class Push:
    """Where an export goes on the hub.

    Attributes:
        identifier: ``owner/name`` of a repository, which is made if there is none.
        public: whether everyone may see it.
    """

    identifier: str
    public: bool = False

    @property
    def repository(self) -> Repository:
        return Repository("model", self.identifier, None, "--push")


def check_push(push: Push) -> None:
    """Check that an export may be pushed: the name, the token, and what the repository holds. Nothing is written.

    Raises:
        InputError: it may not; says what would help.
    """
    name = push.identifier
    if not is_identifier(name):
        raise InputError(f"{name!r} cannot be a repository.", expected="owner/name")
    if is_offline_mode():
        raise InputError("HF_HUB_OFFLINE forbids a push.", got=f"--push {name}", remedy="unset it, or leave out --push")
    login = "run `hf auth login` with a token that may write, or set HF_TOKEN"
    if get_token() is None:
        raise InputError("A push needs a token of the hub.", got="none", expected=constants.ENDPOINT, remedy=login)
    account = with_retries(push.repository, lambda: HfApi().whoami())
    if _role(account) == "read":
        raise InputError(
            "This token may not write to the hub.", got=f"a token for reading, of {account.get('name')}", remedy=login
        )
    found = with_retries(push.repository, lambda: _info(name))
    if found is None:
        return
    files = {one.rfilename for one in found.siblings or ()}
    if MARK not in files and files - _ANY:
        raise InputError(
            f"The repository {name} holds something else than an export.",
            got=", ".join(sorted(files - _ANY)[:5]),
            expected=f"a new or an empty repository, or one with {MARK}",
            remedy="give another name",
        )
    if not found.private and not push.public:
        raise InputError(
            f"The repository {name} is public.",
            expected="a private one: an export holds the facts and the settings of its run",
            remedy="add --public if everyone may see it, or give another name",
        )


def push_folder(push: Push, folder: Path, message: str) -> str:
    """Upload ``folder`` as one commit, after which the repository holds its files and no others.

    Args:
        push: where to. The repository is made if there is none.
        folder: the finished export.
        message: the first line of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: the hub refuses it or does not answer. The repository is as it was, or empty if it is new.
    """
    api, name = HfApi(), push.identifier

    def upload() -> str:
        api.create_repo(name, private=not push.public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, delete_patterns=["*"], repo_type="model"
        )
        return str(commit.commit_url)

    try:
        return with_retries(push.repository, upload)
    except InputError as error:
        options = "" if push.public else " --private"
        raise InputError(
            f"{folder} is written, but could not be pushed to {name}.",
            got=f"{error.what} {error.details.get('got', '')}".strip(),
            remedy=f"`hf upload{options} {name} {quote(str(folder))}` pushes it",
        ) from None


def _info(name: str) -> Any:
    try:
        return HfApi().repo_info(name, timeout=10.0)
    except RepositoryNotFoundError:
        return None
    except HFValidationError as error:
        raise InputError(f"{name!r} cannot be a repository.", got=first_line(error), expected="owner/name") from None


def _role(account: Any) -> str | None:
    found = account.get("auth", {}).get("accessToken", {}).get("role")
    return str(found) if found else None
