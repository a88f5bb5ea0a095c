"""Files for tensors, tables and small documents. Their bytes depend only on the content."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["allow_others", "load_json", "load_table", "load_tensors", "save_json", "save_table", "save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file without metadata. With several metadata keys, its bytes would differ from run to run."""
    from safetensors.torch import save_file  # It imports torch, which commands that only read tables do without.

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    allow_others(path.parent)


def allow_others(folder: Path) -> None:
    """Give safetensors files in ``folder`` the mode of any new file. Safetensors lets only their owner read them."""
    probe = folder / f".{uuid.uuid4().hex}"  # The umask can only be read by changing it, which other threads would see.
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def load_tensors(path: Path, device: str = "cpu", names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The tensors in a safetensors file: those called ``names``, or all of them."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    if names is None:
        return load_file(path, device=device)
    with safe_open(path, framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in names}


def save_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file."""
    pq.write_table(table, path, compression="zstd")


def load_table(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()  # ``read_table`` would import pandas.


def save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
