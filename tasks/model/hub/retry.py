"""Requests to the hub, which may be busy or unreachable, or may refuse them.

A request without an answer is repeated after 1, 2, 4 and 8 seconds. If it still fails, its error is turned into one
that a user can act on.
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
"""Seconds to wait before each repetition of a request that got no answer."""

_UNREACHED = (httpx2.RequestError, ConnectionError, TimeoutError)
_BUSY = {408, 429, 500, 502, 503, 504}

T = TypeVar("T")


def with_retries(repository: Repository, ask: Callable[[], T]) -> T:
    """The result of ``ask``, which is called again after each of ``WAITS`` while the hub does not answer.

    Args:
        repository: the requested repository, for messages.
        ask: calls ``huggingface_hub`` or a library that uses it.

    Raises:
        InputError: the hub refuses the request, or does not answer the last repetition either.
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
            logger.warning("no answer from the hub for %s (%s); asking again in %g s", repository, _reason(error), wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def explain(repository: Repository, error: Exception) -> InputError | None:
    """``error`` as an error that a user can act on; ``None`` if it is unrelated to the hub.

    Args:
        repository: the repository that was being read.
        error: an error of ``huggingface_hub`` or of a library that uses it.
    """
    return _refused(repository, error) or _unanswered(repository, error)


def _is_one_of(error: BaseException, *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in causes(error))


def _passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    for one in causes(error):
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code in _BUSY
        if isinstance(one, OfflineModeIsEnabled):
            return False
        if isinstance(one, _UNREACHED) or "Consistency check failed" in str(one):  # A download was cut short.
            return True
    return False


def _reason(error: BaseException) -> str:
    for one in causes(error):
        if isinstance(one, HfHubHTTPError):
            return f"{constants.ENDPOINT} answers {one.response.status_code} {one.response.reason_phrase}".strip()
        if isinstance(one, _UNREACHED):
            return f"{constants.ENDPOINT}: {first_line(one)}"
    return first_line(error)


def _refused(repository: Repository, error: BaseException) -> InputError | None:
    """The error to show if the hub refuses the request; ``None`` if it does not."""
    login = "run `hf auth login` (or set HF_TOKEN)"
    if _is_one_of(error, GatedRepoError):
        return InputError(
            f"The {repository} is gated: its owner must grant access.",
            got=_reason(error),
            remedy=f"accept its licence at {repository.page}, then {login}",
        )
    if _is_one_of(error, RevisionNotFoundError):
        return InputError(
            f"The {repository} has no such revision.",
            got=repository.revision or constants.DEFAULT_REVISION,
            expected=f"a branch, tag or commit listed at {repository.page}",
            remedy=f"set {repository.setting.partition('.')[0]}.revision",
        )
    if _is_one_of(error, RepositoryNotFoundError, HFValidationError):
        return InputError(
            f"There is no {repository}: no local folder has that name, and no repository that you may read on the hub.",
            got=_reason(error),
            remedy=f"check the spelling of {repository.setting}; if the repository is private, {login}",
        )
    if _is_one_of(error, HfHubHTTPError) and not _passing(error):
        return InputError(
            f"The hub refuses access to {repository}.", got=_reason(error), remedy=f"see {repository.page}; {login}"
        )
    return None


def _unanswered(repository: Repository, error: BaseException) -> InputError | None:
    """The error to show if the hub does not answer or must not be asked; ``None`` if the error has another cause."""
    absent = _is_one_of(error, LocalEntryNotFoundError, RevisionResolutionError)
    if _is_one_of(error, OfflineModeIsEnabled) or (is_offline_mode() and absent):
        return not_cached(repository)
    if _passing(error) or absent or _is_one_of(error, FileMetadataError):
        return InputError(
            f"The hub does not answer for {repository}.",
            got=_reason(error),
            remedy="set HF_HUB_OFFLINE=1 if the files have been fetched before; otherwise run "
            f"{repository.download} on another machine and set {repository.setting}=DIR",
        )
    return None


def not_cached(repository: Repository, lacking: str | None = None) -> InputError:
    """The error of files that are not in the cache while ``HF_HUB_OFFLINE`` forbids fetching them.

    Args:
        repository: the repository.
        lacking: the missing files, if they are known.
    """
    return InputError(
        f"The {repository} is neither a local folder nor in the cache, and HF_HUB_OFFLINE forbids fetching it.",
        got=f"cache {constants.HF_HUB_CACHE}, revision {repository.revision or constants.DEFAULT_REVISION}"
        + (f" without {lacking}" if lacking else ""),
        remedy=f"unset HF_HUB_OFFLINE once, or run {repository.download} on another machine and set "
        f"{repository.setting}=DIR",
    )
