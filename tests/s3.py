"""An S3 server on this machine, and servers that do not do what S3 does."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import s3fs

__all__ = ["SECRET", "counted", "failing", "s3_server", "use_s3", "with_authentication"]

SECRET = "a-secret-access-key-of-nobody"  # noqa: S105 - of a server that is none


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a new server that speaks S3's protocol."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # Requests are counted, and not printed.
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str, secret: str = SECRET) -> None:
    """Let S3's clients use the server at ``url`` from now on."""
    import s3fs

    names = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "nobody-in-particular", "AWS_SECRET_ACCESS_KEY": secret}
    for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def empty_bucket(monkeypatch: pytest.MonkeyPatch, url: str, name: str) -> Iterator[s3fs.S3FileSystem]:
    """The file system of a new bucket of the server at ``url``, which S3's clients use from now on."""
    import s3fs

    use_s3(monkeypatch, url)
    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    filesystem.mkdir(name)
    yield filesystem
    filesystem.rm(name, recursive=True)


@contextmanager
def with_authentication(url: str) -> Iterator[None]:
    """The server at ``url`` looks at who asks. It knows nobody."""

    def after(requests: str) -> None:
        kind = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{url}/moto-api/reset-auth", requests.encode(), kind)  # noqa: S310
        urllib.request.urlopen(request).read()  # noqa: S310

    after("0")
    try:
        yield
    finally:
        after("inf")


@contextmanager
def failing(*, answers: bool) -> Iterator[str]:
    """The URL of a server that answers every request with an internal error, or never."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not answers:
                ended.wait(60)
                return
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


@contextmanager
def counted() -> Iterator[list[str]]:
    """The requests to servers of this process: method and path, without the query."""
    from werkzeug.serving import WSGIRequestHandler

    found: list[str] = []
    log_request = WSGIRequestHandler.log_request

    def log(self: WSGIRequestHandler, code: object = "-", size: object = "-") -> None:
        path, _, query = self.path.partition("?")
        listed = next((part.partition("=")[2] for part in query.split("&") if part.startswith("prefix=")), None)
        found.append(f"LIST {listed}" if listed is not None else f"{self.command} {path}")

    WSGIRequestHandler.log_request = log
    try:
        yield found
    finally:
        WSGIRequestHandler.log_request = log_request
