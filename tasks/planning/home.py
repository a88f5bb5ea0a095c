"""The store of the home: a folder, or what several machines share and this machine's copies of it."""

from __future__ import annotations

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.environment import home, shared_home
from factsmith.tasks.pipeline.progress import progress

__all__ = ["open_store"]


def open_store() -> Store:
    """The store of ``FACTSMITH_HOME``. Nothing is read yet.

    Raises:
        InputError: the home is a URL that cannot be used, or the folder with copies has those of another store.
    """
    url, root = shared_home(), home()
    if url is None and not (root / "shared.json").is_file():
        return Store(root)
    from factsmith.artifacts.remote.shared.opening import open_shared, shared_by  # It imports fsspec.

    if url is None:
        raise InputError(
            f"{root} has this machine's copies of {shared_by(root)}, and is no store of its own.",
            remedy=f"set FACTSMITH_HOME={shared_by(root)} and FACTSMITH_CACHE={root}, or choose another folder",
        )
    return open_shared(url, root, progress)
