"""Errors about full memory and full disks are recognised, from any library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import save_json, save_table, save_tensors
from factsmith.artifacts.keys import KeyShardWriter
from factsmith.tasks.pipeline.resource_errors import resource_errors
from factsmith.tasks.pipeline.settings import RuntimeSettings

FULL = Path("/dev/full")
RUNTIME = RuntimeSettings(tokens_per_pass=77, memory_mb=99)


def told(fail, folder: Path, runtime: RuntimeSettings = RUNTIME) -> InputError:
    with pytest.raises(InputError) as caught, resource_errors("Stage x", folder, runtime):
        fail()
    assert caught.value.what.startswith("Stage x ")
    return caught.value


def rows(folder: Path) -> None:
    writer = KeyShardWriter(folder, rows=4000, width=40, dtype=np.dtype("float32"))
    writer.append(np.zeros((4000, 40), np.float32))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save_json(folder / "file", "a" * 200_000),
        lambda folder: save_tensors(folder / "file", {"a": torch.zeros(100_000)}),
        lambda folder: save_table(folder / "file", pa.table({"a": torch.randn(100_000).tolist()})),
        rows,
    ],
    ids=["json", "tensors", "table", "keys"],
)
def test_a_full_disk(write, small_disk):
    folder, resize = small_disk
    resize(100)
    error = told(lambda: write(folder), folder)
    assert "disk full" in error.what
    assert f"bytes free in {folder}" in error.details["got"]
    assert "factsmith store gc" in error.details["remedy"]


@pytest.mark.skipif(not FULL.is_char_device(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_whose_folder_is_not_there_yet(tmp_path):
    def write() -> None:
        with FULL.open("w") as file:  # opened, never replaced: whoever writes to a name and renames would end it
            file.write("a")

    assert str(tmp_path / "not" / "yet") in told(write, tmp_path / "not" / "yet").details["got"]


@pytest.mark.parametrize("take", [lambda: torch.empty(2**50), lambda: np.empty(2**50)])
def test_full_memory(take, tmp_path):
    error = told(take, tmp_path)
    assert error.what == "Stage x ran out of memory."
    assert "runtime.tokens_per_pass (now 77)" in error.details["remedy"]
    assert "runtime.memory_mb (now 99)" in error.details["remedy"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB free. Of which a lot"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    ],
)
def test_full_memory_of_a_gpu(error, tmp_path):
    def fail():
        raise ValueError("wrapped by a library") from error

    found = told(fail, tmp_path)
    assert found.what == "Stage x ran out of GPU memory."
    assert "runtime.device_map=auto" in found.details["remedy"]
    assert "Of which" not in found.details["got"]
    spread = told(fail, tmp_path, RuntimeSettings(device_map="auto"))
    assert "runtime.gpu_memory_mb" in spread.details["remedy"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(30, "Read-only file system", "elsewhere"),
        OSError(13, "Permission denied", "FOLDER/staging/x"),
        RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database"),
    ],
)
def test_a_folder_that_turns_read_only(error, tmp_path):
    if isinstance(error, PermissionError):
        error = OSError(error.errno, error.strerror, str(tmp_path / "staging"))

    def fail():
        raise ValueError("wrapped by a library") from error

    found = told(fail, tmp_path)
    assert found.what == f"Stage x could not read or write the files in {tmp_path}."
    assert "FACTSMITH_HOME" in found.details["remedy"]


def test_other_errors_keep_their_traceback(tmp_path):
    elsewhere = OSError(13, "Permission denied", "/elsewhere")
    for error in (ZeroDivisionError(), OSError(13, "Permission denied"), elsewhere, RuntimeError("shape mismatch")):
        with pytest.raises(type(error)) as caught, resource_errors("Stage x", tmp_path, RUNTIME):
            raise error
        assert caught.value is error
    mine = InputError("what the user did")
    with pytest.raises(InputError) as caught, resource_errors("Stage x", tmp_path, RUNTIME):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise mine from None
    assert caught.value is mine
