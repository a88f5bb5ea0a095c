"""Requests that are made again if a server fails or does not answer for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from factsmith.artifacts.remote.location import UnreachableError

__all__ = ["patiently"]

logger = logging.getLogger(__name__)

_PAUSES = (1.0, 4.0, 15.0)
"""Seconds between attempts, each of which is limited by ``Location``'s own time limit."""

T = TypeVar("T")


def patiently(request: Callable[[], T]) -> T:
    """What ``request`` returns. It is made again if the server fails, a few times.

    Raises:
        InputError: it failed every time, or for a reason that will not pass, such as credentials.
    """
    for pause in _PAUSES:
        try:
            return request()
        except UnreachableError as error:
            logger.warning("%s; trying again in %.0f s", error.what.rstrip("."), pause)
            time.sleep(pause)
    return request()
