"""Fixtures of tests that look at pages, and of those that start processes."""

from __future__ import annotations

from multiprocessing import forkserver

import pytest

from tests import processes
from tests.browser import find_browser


@pytest.fixture
def chromium() -> str:
    """Where the system's Chromium is."""
    return find_browser()


@pytest.fixture
def forked() -> None:
    """Processes of sweeps are forked from the one that tests fork from, which has imported everything."""
    processes.forkserver()
    forkserver.ensure_running()
