"""A hub on this machine: as much of the protocol as ``huggingface_hub`` and ``datasets`` speak when they read files."""

from __future__ import annotations

import hashlib
import json
import re
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

_ADDRESS = re.compile(r"/(api/)?(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+)(?:/(.*))?)?)?")
"""Of the interface for programs or not; repository; what is asked for; of which revision; which file or folder."""


@dataclass
class FakeHub:
    """Repositories by ``owner/name`` or ``datasets/owner/name``, each with folders by commit, and names of commits.

    Attributes:
        folders: files of (repository, commit).
        branches: commit of (repository, branch).
        private: repositories that only somebody with the token sees.
        gated: repositories whose files only somebody with the token gets.
        busy: answers still to be given with 503.
        asked: how often each (method, path) was.
        sent: bytes of files that went out.
    """

    folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    busy: int = 0
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: int = 0
    endpoint: str = ""

    def publish(self, identifier: str, folder: Path, branch: str = "main") -> str:
        """A commit that holds ``folder``, at the tip of ``branch``."""
        commit = hashlib.sha1(f"{identifier}{_entries(folder)}".encode()).hexdigest()
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

            def do_POST(self) -> None:
                self.do_GET()

            def do_PUT(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = unquote(urlsplit(self.path).path)
                hub.asked[self.command, path] += 1
                known = self.headers.get("authorization") == f"Bearer {TOKEN}"
                status, headers, body = hub.answer(self.path, sent, known=known)
                if (wanted := self.headers.get("Range")) and status == 200:
                    first, last = (int(end) for end in wanted.removeprefix("bytes=").split("-"))
                    status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(body)}"
                    body = body[first : last + 1]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    hub.sent += len(body) if "/resolve/" in path else 0
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

    def answer(self, address: str, sent: bytes, *, known: bool) -> tuple[int, dict[str, str], bytes]:
        if self.busy:
            self.busy -= 1
            return 503, {}, b""
        url = urlsplit(address)
        found = _ADDRESS.fullmatch(url.path)
        api, identifier, what, name, below = (unquote(part or "") for part in found.groups()) if found else [""] * 5
        commit = name if (identifier, name) in self.folders else self.branches.get((identifier, name or "main"))
        if not any(identifier == one for one, _ in self.folders) or (identifier in self.private and not known):
            return _refusal(401, "RepoNotFound")
        if commit is None:
            return _refusal(404, "RevisionNotFound")
        folder = self.folders[identifier, commit]
        if not api:
            closed = identifier in self.gated and not known
            return _refusal(403, "GatedRepo") if closed else _file(folder / below, commit)
        entries = _entries(folder)
        if what == "paths-info":
            answer: object = [entry for entry in entries if entry["path"] in json.loads(sent)["paths"]]
        elif what == "tree":
            if below and not (folder / below).exists():
                return _refusal(404, "EntryNotFound")
            deep = "recursive=true" in url.query.lower()
            inside = [entry for entry in entries if Path(below) in Path(str(entry["path"])).parents]
            answer = [entry for entry in inside if deep or Path(str(entry["path"])).parent == Path(below)]
        else:
            files = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
            answer = {"id": identifier.removeprefix("datasets/"), "sha": commit, "siblings": files}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def _refusal(status: int, error: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": error, **headers}, b""


def _file(file: Path, commit: str) -> tuple[int, dict[str, str], bytes]:
    if not file.is_file():
        return _refusal(404, "EntryNotFound", **{"X-Repo-Commit": commit})
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"}, file.read_bytes()


def _entries(folder: Path) -> list[dict[str, object]]:
    """Files and folders under ``folder``, as the hub lists them."""
    return [
        {
            "type": "file" if path.is_file() else "directory",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size if path.is_file() else 0,
            "oid": _etag(path),
        }
        for path in sorted(folder.rglob("*"))
    ]


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes() if file.is_file() else b"").hexdigest()


@contextmanager
def fake_hub(cache: Path, patch: pytest.MonkeyPatch, kind: type[FakeHub] = FakeHub) -> Iterator[FakeHub]:
    """A hub that ``huggingface_hub`` takes for the real one, an empty cache, no token and short waits."""
    from huggingface_hub import constants

    from factsmith.tasks.model.hub import retry

    fake = kind()
    with fake.serving():
        patch.setattr(constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(retry, "WAITS", (0.01, 0.02))
        yield fake
