"""A page in the system's browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Error, Page, expect, sync_playwright

__all__ = ["PATIENCE", "find_browser", "installed_browser", "lacking", "new_page"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
PATIENCE = 120
"""Seconds that the server or a page may take on a busy machine."""


def lacking(reason: str) -> NoReturn:
    """Skip, or fail where ``FACTSMITH_TEST_BROWSER`` says that there is a browser."""
    if os.environ.get("FACTSMITH_TEST_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


def installed_browser() -> str | None:
    """Where the system's Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def find_browser() -> str:
    """Where the system's Chromium is."""
    return installed_browser() or lacking("needs Chromium, such as Debian's package chromium")


@contextmanager
def new_page(chromium: str) -> Iterator[Page]:
    """A page of a new browser, which must ask for nothing outside this machine, and could not get it."""
    asked: set[str] = set()
    with sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        except Error as error:
            lacking(f"{chromium} does not start: {error.message.splitlines()[0]}")
        context = browser.new_context(viewport={"width": 1900, "height": 1200})
        context.on("request", lambda request: asked.add(urlsplit(request.url).hostname or "127.0.0.1"))
        context.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        yield context.new_page()
        browser.close()
    assert asked == {"127.0.0.1"}
