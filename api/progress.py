"""Progress of long work as a bar on stderr, which notebooks show too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["bar"]


@contextmanager
def bar(name: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done. Yields a function to call with the number of items just finished."""
    with tqdm(desc=name, total=total, disable=not shown, leave=False, ascii=True) as shown_bar:
        yield lambda done: shown_bar.update(done) and None
