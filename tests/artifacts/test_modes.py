"""The modes of files that other users are to read."""

from __future__ import annotations

import os

import pytest
import torch

from factsmith.artifacts.formats import load_tensors, save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_tensors_have_the_umasks_mode(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert load_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]
