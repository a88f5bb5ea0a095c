"""What a machine can run out of, told as something the user can do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from factsmith.artifacts.errors import FactsmithError, InputError, causes
from factsmith.tasks.planning.settings import RuntimeSettings

__all__ = ["shortages"]

# Libraries below Python say it in words: CUDA's, torch's own allocator, Rust's and SQLite's.
_DEVICE = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory")
_DISK = ("No space left on device", "database or disk is full", "Disk quota exceeded")


@contextmanager
def shortages(where: str, folder: Path, runtime: RuntimeSettings) -> Iterator[None]:
    """While open, an error that comes from full memory or a full disk becomes an ``InputError``.

    Args:
        where: what is being done, the beginning of a sentence.
        folder: that is written to.
        runtime: settings, for what could be lowered.

    Raises:
        InputError: memory of a GPU or of the machine ran out, or the disk that holds ``folder`` is full.
    """
    try:
        yield
    except FactsmithError:
        raise
    except Exception as error:
        told = _told(where, folder, runtime, error)
        if told is None:
            raise
        raise told from None


def _told(where: str, folder: Path, runtime: RuntimeSettings, error: BaseException) -> InputError | None:
    lower = f"lower runtime.tokens_per_pass (now {runtime.tokens_per_pass}) or runtime.memory_mb (now "
    lower += f"{runtime.memory_mb})"
    for one in causes(error):
        if isinstance(one, torch.OutOfMemoryError) or _says(one, _DEVICE):
            spread = "lower runtime.gpu_memory_mb" if runtime.device_map else "set runtime.device_map=auto"
            return InputError(
                f"{where} ran out of GPU memory.",
                got=". ".join(str(one).splitlines()[0].split(". ")[:3]),
                remedy=f"{lower}, or {spread} to leave more of the model in CPU memory",
            )
        if isinstance(one, MemoryError) or _errno(one) == errno.ENOMEM or _says(one, _MEMORY):
            return InputError(
                f"{where} ran out of memory.",
                got=str(one).splitlines()[0] if str(one) else None,
                remedy=f"{lower}, or run a narrower model.dtype; on a machine with GPUs set runtime.device_map=auto",
            )
        if _errno(one) in (errno.ENOSPC, errno.EDQUOT) or _says(one, _DISK):
            place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            return InputError(
                f"{where} found the disk full.",
                got=f"{shutil.disk_usage(place).free:,} bytes free in {folder}, without what was half written",
                remedy="make room (`factsmith store gc` removes artifacts that are not needed), or set FACTSMITH_HOME "
                "to a folder on another disk; the same command goes on from here",
            )
    return None


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, Exception) and any(word in str(error) for word in words)
