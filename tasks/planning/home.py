"""The store of the home: a folder, or what several machines share and this machine's copies of it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from factsmith.artifacts.catalogue import Upstream
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store, unwritable
from factsmith.tasks.pipeline.environment import home, shared_home
from factsmith.tasks.pipeline.progress import progress

__all__ = ["open_store"]

_SHARED = "shared.json"
"""The file in a folder with copies that says what they are copies of."""

_ONE_COMMIT_EACH = ("hf", "http", "https", "github", "git", "zip", "tar", "data")
"""Protocols without what a shared store needs: files that are written one by one, and removed."""

_upstreams: dict[tuple[str, Path], Upstream] = {}
"""One for each home of this process: what was checked once need not be checked again."""


def open_store() -> Store:
    """The store of ``FACTSMITH_HOME``. Nothing is read yet.

    Raises:
        InputError: the home is a URL that cannot be used, or the folder with copies has those of another store.
    """
    url, store = shared_home(), Store(home())
    marked = store.root / _SHARED
    known = json.loads(marked.read_text())["url"] if marked.is_file() else None
    if url is None:
        if known is not None:
            raise InputError(
                f"{store.root} has this machine's copies of {known}, and is no store of its own.",
                remedy=f"set FACTSMITH_HOME={known} and FACTSMITH_CACHE={store.root}, or choose another folder",
            )
        return store
    if (protocol := urlsplit(url).scheme) in _ONE_COMMIT_EACH:
        raise InputError(
            f"A store cannot be shared at {url}.",
            got=f"{protocol}://",
            expected="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or another place where files are written and removed",
            remedy="set FACTSMITH_HOME to a folder; `factsmith store push` and `pull` copy artifacts there and back",
        )
    from factsmith.artifacts.remote.location import Location
    from factsmith.artifacts.remote.shared.upstream import RemoteUpstream

    location = Location.open(url)
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
            marked.write_text(json.dumps({"url": location.url}))
        except OSError as error:
            raise unwritable(store.root, error) from None
    store.upstream = _upstreams.setdefault((location.url, store.root), RemoteUpstream(store, location, progress))
    return store
