"""A hub on 127.0.0.1 with one dataset, which counts what is asked of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What is served, and what has been.

    Attributes:
        folder: files of the dataset.
        name: of the dataset, ``owner/name``.
        commits: SHA of each branch.
        failures: answers of "come back later" that are still to be given, from now on.
        sent: bytes of data files that have been sent.
        asked: requests so far.
    """

    folder: Path
    name: str = "someone/some-text"
    commits: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    failures: int = 0
    sent: int = 0
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """While open, the dataset in ``folder`` is on a hub of its own."""
    hub = Hub(folder)

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """The few answers of the hub's HTTP interface that reading a dataset asks for."""

    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.failures:
            hub.failures -= 1
            self._send(503, b"later")
            return
        api, files = f"/api/datasets/{hub.name}", f"/datasets/{hub.name}/resolve/"
        if path.startswith(files):
            self._file(*path.removeprefix(files).split("/", 1))
        elif path == api or path.startswith(f"{api}/"):
            self._api(path.removeprefix(api), body)
        else:
            self._missing("RepoNotFound")

    def _api(self, path: str, body: bytes) -> None:
        what, _, rest = path.strip("/").partition("/")
        revision, _, below = rest.partition("/")
        commit, below = self._commit(revision or "main"), below.strip("/")
        entries = self._entries()
        if commit is None:
            self._missing("RevisionNotFound")
        elif what in ("", "revision"):
            names = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
            self._json({"id": self.state.name, "sha": commit, "siblings": names})
        elif what == "tree" and (not below or below in {entry["path"] for entry in entries}):
            deep = "recursive=true" in self.path.lower()
            inside = [entry for entry in entries if not below or str(entry["path"]).startswith(f"{below}/")]
            self._json([entry for entry in inside if deep or str(Path(str(entry["path"])).parent) == (below or ".")])
        elif what == "paths-info":
            wanted = json.loads(body)["paths"]
            self._json([entry for entry in entries if entry["path"] in wanted])
        else:
            self._missing("EntryNotFound")

    def _commit(self, revision: str) -> str | None:
        commits = self.state.commits
        return commits.get(revision, revision if revision in commits.values() else None)

    def _entries(self) -> list[dict[str, object]]:
        entries = []
        for path in sorted(self.state.folder.rglob("*")):
            name = path.relative_to(self.state.folder).as_posix()
            digest = hashlib.sha256(name.encode()).hexdigest()[:40]
            size = path.stat().st_size if path.is_file() else 0
            entries.append({"type": "file" if size else "directory", "oid": digest, "size": size, "path": name})
        return entries

    def _file(self, revision: str, name: str) -> None:
        path, commit = self.state.folder / name, self._commit(revision)
        if commit is None:
            return self._missing("RevisionNotFound")
        if not path.is_file():
            return self._missing("EntryNotFound", commit)
        content = path.read_bytes()
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        status = 200
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
            content, status = content[int(first) : stop], 206
        if self.command == "GET" and path.suffix != ".md":
            self.state.sent += len(content)
        return self._send(status, content, headers)

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, commit: str | None = None) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, **({"X-Repo-Commit": commit} if commit else {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
