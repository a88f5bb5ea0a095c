"""A hub on this machine: as much of the protocol as ``huggingface_hub`` speaks when it fetches files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_let_me_in"  # noqa: S105 - of a hub that is none
"""Opens what is private or gated."""


@dataclass
class FakeHub:
    """Repositories by ``owner/name``, each with folders by commit, and names of commits.

    Attributes:
        folders: files of (repository, commit).
        branches: commit of (repository, branch).
        private: repositories that only somebody with the token sees.
        gated: repositories whose files only somebody with the token gets.
        busy: answers still to be given with 503.
        asked: how often each (method, path) was.
    """

    folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    busy: int = 0
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    endpoint: str = ""

    def publish(self, identifier: str, folder: Path, branch: str = "main") -> str:
        """A commit that holds ``folder``, at the tip of ``branch``."""
        named = "".join(f"{file.name}{_etag(file)}" for file in sorted(folder.iterdir()))
        commit = hashlib.sha1(f"{identifier}{named}".encode()).hexdigest()
        self.folders[identifier, commit] = folder
        self.branches[identifier, branch] = commit
        return commit

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {path.rpartition("/")[2] for method, path in self.asked if method == "GET" and "/resolve/" in path}

    @contextmanager
    def serving(self) -> Iterator[None]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.asked[self.command, path] += 1
                known = self.headers.get("authorization") == f"Bearer {TOKEN}"
                status, headers, body = hub.answer(path, known=known)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, path: str, *, known: bool) -> tuple[int, dict[str, str], bytes]:
        if self.busy:
            self.busy -= 1
            return 503, {}, b""
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        identifier = "/".join(parts[2:4] if api else parts[:2])
        name = (parts[5] if len(parts) > 5 else "main") if api else parts[3]
        commit = name if (identifier, name) in self.folders else self.branches.get((identifier, name))
        if not any(identifier == one for one, _ in self.folders) or (identifier in self.private and not known):
            status, error = 401, "RepoNotFound"
        elif commit is None:
            status, error = 404, "RevisionNotFound"
        elif not api and identifier in self.gated and not known:
            status, error = 403, "GatedRepo"
        else:
            folder = self.folders[identifier, commit]
            return self.listed(identifier, commit, parts[4:]) if api else _file(folder / parts[4], commit)
        return status, {"X-Error-Code": error}, b""

    def listed(self, identifier: str, commit: str, asked: list[str]) -> tuple[int, dict[str, str], bytes]:
        if asked[:1] != ["tree"]:
            return 200, {}, json.dumps({"id": identifier, "sha": commit, "siblings": []}).encode()
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
            for file in sorted(self.folders[identifier, commit].iterdir())
        ]
        return 200, {}, json.dumps(files).encode()


def _file(file: Path, commit: str) -> tuple[int, dict[str, str], bytes]:
    if not file.is_file():
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(file)}"'}, file.read_bytes()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def fake_hub(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that ``huggingface_hub`` takes for the real one, an empty cache, no token and short waits."""
    from huggingface_hub import constants

    from factsmith.tasks.hub import patience

    fake = FakeHub()
    with fake.serving():
        patch.setattr(constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(patience, "WAITS", (0.01, 0.02))
        yield fake
