from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.shared.upstream import RemoteUpstream
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.progress import progress
from tests.s3 import empty_bucket, s3_server

SERIES = Series("things", 1, {})


def write(text: str = "text") -> Callable[[Draft], None]:
    """Builds an artifact with a file in a folder."""

    def build(draft: Draft) -> None:
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "a.bin").write_bytes(text.encode() * 1000)
        (draft.path / "b.txt").write_text(text)

    return build


def machine(folder: Path, url: str) -> Store:
    """The store at ``url`` as a machine with copies in ``folder`` sees it."""
    store = Store(folder)
    store.upstream = RemoteUpstream(store, Location.open(url), progress)
    return store


@pytest.fixture
def folder(tmp_path) -> str:
    """The URL of a folder to share."""
    (tmp_path / "shared").mkdir()
    return f"file://{tmp_path}/shared"


@pytest.fixture
def one(tmp_path, folder) -> Store:
    return machine(tmp_path / "one", folder)


@pytest.fixture
def two(tmp_path, folder) -> Store:
    return machine(tmp_path / "two", folder)


@pytest.fixture(scope="session")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(endpoint, monkeypatch):
    """The file system of an empty bucket, at ``s3://team``."""
    with empty_bucket(monkeypatch, endpoint, "team") as filesystem:
        yield filesystem
