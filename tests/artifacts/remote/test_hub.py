"""Pushing to and pulling from a dataset on the Hugging Face hub: an artifact is one commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from factsmith.artifacts.manifest import MANIFEST_NAME
from tests.runs import contents
from tests.writable_hub import writable_hub

URL = "hf://datasets/me/statistics/some/folder"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch):
    with writable_hub(tmp_path, monkeypatch) as hub:
        (tmp_path / "repository" / "commit-0").mkdir(parents=True)
        (tmp_path / "repository" / "commit-0" / "README.md").write_text("statistics")
        hub.publish("datasets/me/statistics", tmp_path / "repository" / "commit-0")
        yield hub


def test_artifacts_come_and_go_by_commit(hub, moved, cli, store, other):
    assert cli(store, "store", "push", "factor", "hf://datasets/me/nothing")[0] == 2
    pushed = moved(store, "push", "factor", URL)
    assert len(hub.messages) == len(pushed["artifacts"]) + 1  # the last one is the lineage of what is left out
    assert {one["state"] for one in moved(store, "push", "factor", URL)["artifacts"]} == {"there"}
    assert len(hub.messages) == len(pushed["artifacts"]) + 1
    moved(other, "pull", "factor", URL)
    assert contents(other) == {name: one for name, one in contents(store).items() if not name.startswith("keys/")}
    files = hub.folders["datasets/me/statistics", hub.branches["datasets/me/statistics", "main"]]
    assert {path.name for path in (files / "some" / "folder" / "artifacts").rglob("*") if path.is_file()} == {
        "a.bin", "b.txt", MANIFEST_NAME,
    }  # fmt: skip
