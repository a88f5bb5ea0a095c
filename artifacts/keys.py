"""Keys on disk: each shard is a Zarr array of rows.

Chunks are raw bytes with a checksum each. Keys barely compress, and compressing them would cost several times the
write. Missing chunks must not read as zeros, so the fill value is NaN and empty chunks are written too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import DamagedArtifactError

__all__ = ["KeyShardWriter", "chunk_rows", "read_keys"]

_ARRAY = "keys"
_CHUNK_BYTES = 8 * 2**20


def chunk_rows(width: int, dtype: np.dtype) -> int:
    """Rows of a chunk: a power of two that gives about 8 MiB."""
    rows = max(1, _CHUNK_BYTES // (width * dtype.itemsize))
    return 1 << (rows.bit_length() - 1)


class KeyShardWriter:
    """Writes the rows of a shard in order, a whole chunk at a time.

    Args:
        path: folder of the artifact being built.
        rows: number of rows of the complete shard.
        width: d_k.
        dtype: float32 or float16.
    """

    def __init__(self, path: Path, *, rows: int, width: int, dtype: np.dtype) -> None:
        self.rows = rows
        self.written = 0
        self._chunk = chunk_rows(width, dtype)
        self._pending = np.empty((min(self._chunk, rows), width), dtype)
        self._filled = 0
        import zarr  # Here, because a plan writes and reads no keys.
        from zarr.codecs import BytesCodec, Crc32cCodec

        self._array = zarr.create_array(
            path / _ARRAY,
            shape=(rows, width),
            chunks=(min(self._chunk, rows), width),
            dtype=dtype,
            fill_value=float("nan"),
            chunk_key_encoding={"name": "v2", "separator": "."},  # All chunks are in one folder.
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )

    def append(self, keys: np.ndarray) -> None:
        """Append ``keys`` (n, d_k)."""
        while len(keys):
            space = len(self._pending) - self._filled
            if self._filled == 0 and len(keys) >= space:  # A whole chunk needs no copy.
                self._flush(keys[:space])
            else:
                taken = keys[:space]
                self._pending[self._filled : self._filled + len(taken)] = taken
                self._filled += len(taken)
                if self._filled == len(self._pending) or self.written + self._filled == self.rows:
                    self._flush(self._pending[: self._filled])
                    self._filled = 0
            keys = keys[space:]

    def _flush(self, keys: np.ndarray) -> None:
        self._array[self.written : self.written + len(keys)] = keys
        self.written += len(keys)

    def check_complete(self) -> None:
        """
        Raises:
            ValueError: the number of rows that were written is not the shard's.
        """
        if self.written != self.rows:
            raise ValueError(f"shard of {self.rows} rows was given {self.written + self._filled}")


def read_keys(artifact: Artifact, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows ``start`` to ``stop`` of a shard, in its stored dtype.

    Raises:
        DamagedArtifactError: a chunk is missing or its checksum is wrong.
    """
    try:
        import zarr

        # Version 2 of the format has codecs that unpickle.
        array = zarr.open_array(artifact.path / _ARRAY, mode="r", zarr_format=3)
        rows = np.asarray(array[start:stop])
    except (ValueError, RuntimeError, OSError) as error:
        raise DamagedArtifactError(f"{artifact.address} cannot be read.", got=error) from None
    return rows
