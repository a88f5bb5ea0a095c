"""Asking a hub that may be busy, far away or unwilling.

One that does not answer is asked again after 1, 2, 4 and 8 seconds; whatever goes wrong in the end is told as
something the user can do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from factsmith.artifacts.errors import InputError, causes, first_line
from factsmith.tasks.model.hub.repository import Repository

__all__ = ["WAITS", "explain", "not_cached", "with_retries"]

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a hub that did not answer is asked again."""

_UNREACHED = (httpx2.RequestError, ConnectionError, TimeoutError)
_BUSY = {408, 429, 500, 502, 503, 504}

T = TypeVar("T")


def with_retries(repository: Repository, ask: Callable[[], T]) -> T:
    """What ``ask`` gives, asked again after ``WAITS`` while the hub does not answer.

    Args:
        repository: that is asked for, for messages.
        ask: calls ``huggingface_hub`` or a library that does.

    Raises:
        InputError: the hub refuses, or has not answered to the last.
    """
    for wait in (*WAITS, None):
        try:
            return ask()
        except Exception as error:
            if not _passing(error) or wait is None:
                explained = explain(repository, error)
                if explained is None:
                    raise
                raise explained from None
            logger.warning(
                "the hub does not answer for %s (%s); asking again in %g s", repository, _reason(error), wait
            )
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def explain(repository: Repository, error: Exception) -> InputError | None:
    """What the user can do about ``error``; ``None`` if the hub has nothing to do with it.

    Args:
        repository: that was read when it came.
        error: of ``huggingface_hub`` or of a library that calls it.
    """
    return _refused(repository, error) or _unanswered(repository, error)


def _is_one_of(error: BaseException, *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in causes(error))


def _passing(error: BaseException) -> bool:
    """Whether asking again may help."""
    for one in causes(error):
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code in _BUSY
        if isinstance(one, OfflineModeIsEnabled):
            return False
        if isinstance(one, _UNREACHED) or "Consistency check failed" in str(one):  # a file that was cut short
            return True
    return False


def _reason(error: BaseException) -> str:
    for one in causes(error):
        if isinstance(one, HfHubHTTPError):
            return f"{constants.ENDPOINT} says {one.response.status_code} {one.response.reason_phrase}".strip()
        if isinstance(one, _UNREACHED):
            return f"{constants.ENDPOINT}: {first_line(one)}"
    return first_line(error)


def _refused(repository: Repository, error: BaseException) -> InputError | None:
    """What the user can do about a hub that has said no; ``None`` if it has not."""
    login = "run `hf auth login` (or set HF_TOKEN)"
    if _is_one_of(error, GatedRepoError):
        return InputError(
            f"The {repository} is gated: its owner lets in only who has asked.",
            got=_reason(error),
            remedy=f"accept its licence at {repository.page}, then {login}",
        )
    if _is_one_of(error, RevisionNotFoundError):
        return InputError(
            f"The {repository} has no such revision.",
            got=repository.revision or constants.DEFAULT_REVISION,
            expected=f"a branch, tag or commit that {repository.page} shows",
            remedy=f"set {repository.setting.partition('.')[0]}.revision",
        )
    if _is_one_of(error, RepositoryNotFoundError, HFValidationError):
        return InputError(
            f"There is no {repository}: no folder of that name here, and no repository on the hub that you may read.",
            got=_reason(error),
            remedy=f"look at the spelling of {repository.setting}; if the repository is private, {login}",
        )
    if _is_one_of(error, HfHubHTTPError) and not _passing(error):
        return InputError(
            f"The hub refuses {repository}.", got=_reason(error), remedy=f"see {repository.page}; {login}"
        )
    return None


def _unanswered(repository: Repository, error: BaseException) -> InputError | None:
    """What the user can do where nobody answers, or nobody may be asked; ``None`` if that is not what is wrong."""
    absent = _is_one_of(error, LocalEntryNotFoundError, RevisionResolutionError)
    if _is_one_of(error, OfflineModeIsEnabled) or (is_offline_mode() and absent):
        return not_cached(repository)
    if _passing(error) or absent or _is_one_of(error, FileMetadataError):
        return InputError(
            f"The hub does not answer for {repository}.",
            got=_reason(error),
            remedy="set HF_HUB_OFFLINE=1 if it has been fetched before; else on another machine "
            f"{repository.download} and set {repository.setting}=DIR",
        )
    return None


def not_cached(repository: Repository, lacking: str | None = None) -> InputError:
    """The cache lacks something, and may not be filled.

    Args:
        repository: of which.
        lacking: what, where that is known.
    """
    return InputError(
        f"The {repository} is neither a folder here nor in the cache, and HF_HUB_OFFLINE forbids to fetch it.",
        got=f"cache {constants.HF_HUB_CACHE}, revision {repository.revision or constants.DEFAULT_REVISION}"
        + (f" without {lacking}" if lacking else ""),
        remedy=f"unset HF_HUB_OFFLINE once; or on another machine {repository.download} "
        f"and set {repository.setting}=DIR",
    )
