"""A hub on this machine that takes commits: the calls that ``huggingface_hub`` makes for one, without Xet."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.fake_hub import TOKEN, FakeHub, fake_hub

__all__ = ["WritableHub", "writable_hub"]

LFS = (".safetensors",)


@dataclass
class WritableHub(FakeHub):
    """The hub, with one account.

    Attributes:
        role: what its token may do.
        objects: large files by their SHA-256.
        refusing: paths whose calls are refused with 403.
        messages: the message of each commit.
    """

    role: str = "write"
    objects: dict[str, bytes] = field(default_factory=dict)
    refusing: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    _kept: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)

    def answer(self, address: str, sent: bytes, *, known: bool) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlsplit(address).path)
        if any(one in path for one in self.refusing):
            return 403, {}, b""
        if path.startswith("/objects/"):  # The address of a large file is a secret of its own.
            self.objects[path.rpartition("/")[2]] = sent
            return 200, {}, b""
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        call = self._call(path)
        if call is None:
            return self._read(address, path, sent, known=known)
        return call(path, sent) if known and not self.busy else super().answer("/none/none", sent, known=known)

    def _call(self, path):
        """What answers a call that needs the token."""
        if path == "/api/whoami-v2":
            return lambda *_: _json(
                {"type": "user", "name": "me", "auth": {"type": "access_token", "accessToken": {"role": self.role}}}
            )
        ends = {"/api/repos/create": self._create, "/preupload/main": self._modes}
        ends |= {"/info/lfs/objects/batch": self._batch, "/commit/main": self._commit}
        return next((call for end, call in ends.items() if path.endswith(end)), None)

    def _read(self, address: str, path: str, sent: bytes, *, known: bool) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = super().answer(address, sent, known=known)
        if path.startswith("/api/models/") and path.count("/") == 4 and status == 200:
            private = path.removeprefix("/api/models/") in self.private
            body = json.dumps({**json.loads(body), "private": private}).encode()
        return status, headers, body

    def _create(self, _: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        asked = json.loads(sent)
        name = f"{asked['organization']}/{asked['name']}"
        found = {"url": f"{self.endpoint}/{name}", "name": name}
        if any(name == one for one, _ in self.folders):
            return _json(found, 409)
        if asked.get("visibility") == "private":
            self.private.add(name)
        self.publish(name, self._folder())
        return _json(found)

    def _modes(self, _: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        files = json.loads(sent)["files"]
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
            }
            for one in files
        ]
        return _json({"files": modes})

    def _batch(self, _: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.endpoint}/objects/{one['oid']}"}}}
            for one in json.loads(sent)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, path: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        name = path.removeprefix("/api/").removeprefix("models/").removesuffix("/commit/main")
        folder = self._folder()
        shutil.copytree(self.folders[name, self.branches[name, "main"]], folder, dirs_exist_ok=True)
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
                continue
            file = folder / value["path"]
            if line["key"] == "deletedFile":
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "lfsFile":
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            else:
                content = base64.b64decode(value["content"])
            file.write_bytes(content)
        commit = self.publish(name, folder)
        return _json({"commitUrl": f"{self.endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _folder(self) -> Path:
        self._kept.append(tempfile.TemporaryDirectory())
        return Path(self._kept[-1].name)


def _json(value: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def writable_hub(tmp_path: Path, patch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """Such a hub, and its token in the environment."""
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with fake_hub(tmp_path / "hf", patch, WritableHub) as hub:
        patch.setenv("HF_TOKEN", TOKEN)
        yield hub
