"""Keys in Zarr: rows are read as written, and damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.artifacts.keys import KeyShardWriter, chunk_rows, read_keys
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Store

WIDTH = 64


def rows(count: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, WIDTH)).astype(dtype)


def publish(tmp_path, keys: np.ndarray, pieces: list[int], chunk: int, monkeypatch):
    monkeypatch.setattr("factsmith.artifacts.keys._CHUNK_BYTES", chunk * WIDTH * keys.dtype.itemsize)

    def build(draft):
        writer = KeyShardWriter(draft.path, rows=len(keys), width=WIDTH, dtype=keys.dtype)
        for piece in np.split(keys, np.cumsum(pieces)):
            writer.append(piece)
        writer.check_complete()

    store = Store(tmp_path)
    return store, store.get_or_build(Series("keys", 1, {}).member(), build)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("count", "pieces"), [(100, []), (100, [1, 30, 2]), (7, [3]), (64, [32]), (33, [32])])
def test_rows_come_back_as_they_were_whatever_the_pieces(tmp_path, monkeypatch, dtype, count, pieces):
    keys = rows(count, dtype)
    _, artifact = publish(tmp_path, keys, pieces, 32, monkeypatch)
    assert np.array_equal(read_keys(artifact), keys)
    assert np.array_equal(read_keys(artifact, 2, 6), keys[2:6])
    assert read_keys(artifact).dtype == dtype


def test_pieces_do_not_change_the_bytes(tmp_path, monkeypatch):
    keys = rows(100, "float32")
    _, one = publish(tmp_path / "a", keys, [], 32, monkeypatch)
    _, other = publish(tmp_path / "b", keys, [10, 50], 32, monkeypatch)
    assert one.manifest.content == other.manifest.content


def test_a_shard_that_is_not_full_is_not_published(tmp_path):
    writer = KeyShardWriter(tmp_path, rows=10, width=WIDTH, dtype=np.dtype("float32"))
    writer.append(rows(9, "float32"))
    with pytest.raises(ValueError, match="given 9"):
        writer.check_complete()


def test_a_flipped_byte_is_never_read(tmp_path, monkeypatch):
    _, artifact = publish(tmp_path, rows(100, "float32"), [], 32, monkeypatch)
    path = artifact.path / "keys" / "1.0"
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedArtifactError):
        read_keys(artifact)


def test_a_missing_chunk_is_named(tmp_path, monkeypatch):
    store, artifact = publish(tmp_path, rows(100, "float32"), [], 32, monkeypatch)
    (artifact.path / "keys" / "2.0").unlink()
    assert "keys/2.0 is missing" in store.verify(artifact.path)[0]
    assert np.isnan(read_keys(artifact)[64:96]).all()  # and would not pass for zeros


def test_zero_rows_are_written_too(tmp_path, monkeypatch):
    _, artifact = publish(tmp_path, np.zeros((64, WIDTH), "float32"), [], 32, monkeypatch)
    assert {path.name for path in (artifact.path / "keys").iterdir()} == {"zarr.json", "0.0", "1.0"}


@pytest.mark.parametrize(
    ("width", "dtype", "expected"), [(6400, "float16", 512), (16384, "float16", 256), (640, "float32", 2048)]
)
def test_chunks_are_a_few_megabytes(width, dtype, expected):
    assert chunk_rows(width, np.dtype(dtype)) == expected
