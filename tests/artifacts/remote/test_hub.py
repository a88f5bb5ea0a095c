"""Pushing to and pulling from a dataset on the Hugging Face hub: an artifact is one commit."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from factsmith.artifacts.manifest import MANIFEST_NAME
from tests.fake_hub import FakeHub
from tests.runs import contents

URL = "hf://datasets/me/statistics/some/folder"


class WritableHub(FakeHub):
    """A hub that takes commits of small files."""

    commits: int = 0

    def answer(self, address: str, sent: bytes, *, known: bool) -> tuple[int, dict[str, str], bytes]:
        path = urlsplit(address).path
        if path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(sent)["files"]
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps({"files": files}).encode()
        if not path.endswith("/commit/main"):
            return super().answer(address, sent, known=known)
        identifier = "datasets/me/statistics"
        before = self.folders[identifier, self.branches[identifier, "main"]]
        self.commits += 1
        after = before.with_name(f"commit-{self.commits}")
        shutil.copytree(before, after)
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                file = after / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = self.publish(identifier, after)
        answer = {"commitOid": commit, "commitUrl": f"{self.endpoint}/{identifier}/commit/{commit}", "success": True}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch):
    from tests.fake_hub import fake_hub

    monkeypatch.setattr("tests.fake_hub.FakeHub", WritableHub)
    with fake_hub(tmp_path / "hf", monkeypatch) as hub:
        (tmp_path / "repository" / "commit-0").mkdir(parents=True)
        (tmp_path / "repository" / "commit-0" / "README.md").write_text("statistics")
        hub.publish("datasets/me/statistics", tmp_path / "repository" / "commit-0")
        yield hub


def test_artifacts_come_and_go_by_commit(hub, moved, cli, store, other):
    assert cli(store, "store", "push", "factor", "hf://datasets/me/nothing")[0] == 2
    pushed = moved(store, "push", "factor", URL)
    assert hub.commits == len(pushed["artifacts"]) + 1  # the last one is the lineage of what is left out
    assert {one["state"] for one in moved(store, "push", "factor", URL)["artifacts"]} == {"there"}
    assert hub.commits == len(pushed["artifacts"]) + 1
    moved(other, "pull", "factor", URL)
    assert contents(other) == {name: one for name, one in contents(store).items() if not name.startswith("keys/")}
    files = hub.folders["datasets/me/statistics", hub.branches["datasets/me/statistics", "main"]]
    assert {path.name for path in (files / "some" / "folder" / "artifacts").rglob("*") if path.is_file()} == {
        "a.bin", "b.txt", MANIFEST_NAME,
    }  # fmt: skip
