"""Errors of full memory, full disks and read-only folders, turned into errors that a user can act on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from factsmith.artifacts.errors import FactsmithError, InputError, causes
from factsmith.tasks.pipeline.settings import RuntimeSettings

__all__ = ["resource_errors"]

# CUDA, torch's allocator, Rust libraries and SQLite report these errors only in words.
_DEVICE = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory")
_DISK = ("No space left on device", "database or disk is full", "Disk quota exceeded")
_UNUSABLE = (
    "Read-only file system",
    "attempt to write a readonly database",
    "disk I/O error",
    "unable to open database file",
)


@contextmanager
def resource_errors(
    activity: str, folder: Path, runtime: RuntimeSettings, option: str = "FACTSMITH_HOME"
) -> Iterator[None]:
    """Turn errors of full memory, of a full disk and of a folder that cannot be written into ``InputError``.

    Args:
        activity: what is being done; it begins the message.
        folder: the folder that is written to.
        runtime: settings that could be lowered.
        option: what says which folder it is.

    Raises:
        InputError: the GPU or the machine ran out of memory, or the disk of ``folder`` is full or cannot be written.
    """
    try:
        yield
    except FactsmithError:
        raise
    except Exception as error:
        explained = _explained(activity, folder, runtime, option, error)
        if explained is None:
            raise
        raise explained from None


def _explained(
    activity: str, folder: Path, runtime: RuntimeSettings, option: str, error: BaseException
) -> InputError | None:
    settings = {"tokens_per_pass": runtime.tokens_per_pass, "memory_mb": runtime.memory_mb}
    names = [f"runtime.{name}" + (f" (now {value})" if value else "") for name, value in settings.items()]
    lower = f"lower {' or '.join(names)}"
    device_map = "runtime.device_map=auto" + (" in place of runtime.devices" if runtime.devices else "")
    for cause in causes(error):
        if isinstance(cause, torch.OutOfMemoryError) or _says(cause, _DEVICE):
            spread = "lower runtime.gpu_memory_mb" if runtime.device_map else f"set {device_map}"
            return InputError(
                f"{activity} ran out of GPU memory.",
                got=". ".join(str(cause).splitlines()[0].split(". ")[:3]),
                remedy=f"{lower}, or {spread} to leave more of the model in CPU memory",
            )
        if isinstance(cause, MemoryError) or _errno(cause) == errno.ENOMEM or _says(cause, _MEMORY):
            return InputError(
                f"{activity} ran out of memory.",
                got=str(cause).splitlines()[0] if str(cause) else None,
                remedy=f"{lower}, or run a narrower model.dtype; on a machine with GPUs set {device_map}",
            )
        if _errno(cause) in (errno.ENOSPC, errno.EDQUOT) or _says(cause, _DISK):
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            return InputError(
                f"{activity} found the disk full.",
                got=f"{shutil.disk_usage(existing).free:,} bytes free in {folder}, without the files that were half "
                "written",
                remedy="free some space (`factsmith store gc` removes artifacts that are not needed), or set "
                f"{option} to a folder on another disk; the same command then continues from here",
            )
        if _errno(cause) == errno.EROFS or _says(cause, _UNUSABLE) or _is_forbidden(cause, folder):
            return InputError(
                f"{activity} could not read or write the files in {folder}.",
                got=cause,
                remedy=f"check that you may write there and that the disk works, or set {option} to another folder; "
                "the same command then continues from here",
            )
    return None


def _is_forbidden(error: BaseException, folder: Path) -> bool:
    """Whether a file below ``folder`` could not be written or read for want of permission."""
    if not isinstance(error, PermissionError) or error.filename is None:
        return False
    return Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder.absolute())


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    return isinstance(error, Exception) and any(phrase in str(error) for phrase in phrases)
