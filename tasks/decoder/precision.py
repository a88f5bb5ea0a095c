"""TF32 for the products of float32 matrices on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

__all__ = ["tensor_float_32"]

_lock = Lock()
_open: list[str] = []
"""The setting before, once for each context that is open."""


@contextmanager
def tensor_float_32(wanted: bool) -> Iterator[None]:
    """While open and ``wanted``, a GPU rounds the factors of float32 products to 11 bits. Sums stay float32.

    This holds for all threads of the process, until the last of those that want it is done.
    """
    if not wanted:
        yield
        return
    matmul = torch.backends.cuda.matmul
    with _lock:
        _open.append(_open[0] if _open else matmul.fp32_precision)
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        with _lock:
            before = _open.pop()
            matmul.fp32_precision = "tf32" if _open else before
