"""Opening a shared store: a URL, and this machine's folder with copies."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from factsmith.artifacts.catalogue import Upstream
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.shared.upstream import RemoteUpstream
from factsmith.artifacts.remote.transfer import ProgressBar
from factsmith.artifacts.store import Store, unwritable

__all__ = ["open_shared", "shared_by", "store_at"]

_SHARED = "shared.json"
"""The file in a folder with copies that says what they are copies of."""

_NO_FILES = ("hf", "http", "https", "github", "git", "zip", "tar", "data")
"""Protocols without what a shared store needs: files that are written one by one, and removed."""

_upstreams: dict[tuple[str, Path], Upstream] = {}
"""One for each home of this process: what was checked once need not be checked again."""


def shared_by(root: Path) -> str | None:
    """The URL of the store whose copies are in ``root``, if it has copies."""
    file = root / _SHARED
    try:
        return str(json.loads(file.read_text())["url"]) if file.is_file() else None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{file} cannot be read.", expected="the URL of a shared store", remedy="remove it if you know its store"
        ) from None


def open_shared(url: str, root: Path, progress: ProgressBar) -> Store:
    """The store at ``url``, with copies in ``root``. Nothing is read there yet.

    Raises:
        InputError: the URL cannot be used, or ``root`` has the artifacts of another store.
    """
    if (protocol := urlsplit(url).scheme) in _NO_FILES:
        raise InputError(
            f"A store cannot be shared at {url}.",
            got=f"{protocol}://",
            expected="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or another place where files are written and removed",
            remedy="set FACTSMITH_HOME to a folder; `factsmith store push` and `pull` copy artifacts there and back",
        )
    location, store = Location.open(url), Store(root)
    known = shared_by(store.root)
    if known is None and store.all_paths():
        raise InputError(
            f"{store.root} is a store of its own, and cannot have the copies of {location.url}.",
            remedy=f"set FACTSMITH_CACHE to another folder. `factsmith store push REF {location.url}` with "
            f"FACTSMITH_HOME={store.root} shares its artifacts",
        )
    if known not in (None, location.url):
        raise InputError(
            f"{store.root} has the copies of another store.",
            got=known,
            expected=location.url,
            remedy="set FACTSMITH_CACHE to another folder, or unset it: each store then has its own",
        )
    if known is None:
        try:
            store.root.mkdir(parents=True, exist_ok=True)
            written = store.root / f".{_SHARED}"
            written.write_text(json.dumps({"url": location.url}))
            written.replace(store.root / _SHARED)
        except OSError as error:
            raise unwritable(store.root, error) from None
    store.upstream = _upstreams.setdefault((location.url, store.root), RemoteUpstream(store, location, progress))
    return store


def store_at(root: Path, url: str | None, progress: ProgressBar) -> Store:
    """The store that another process has opened: the folder ``root``, or ``open_shared`` if it has a URL.

    Raises:
        InputError: as in ``open_shared``.
    """
    return Store(root) if url is None else open_shared(url, root, progress)
