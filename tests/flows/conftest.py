"""Fixtures of the tests that look at pages."""

from __future__ import annotations

import pytest

from tests.browser import find_browser


@pytest.fixture
def chromium() -> str:
    """Where the system's Chromium is."""
    return find_browser()
