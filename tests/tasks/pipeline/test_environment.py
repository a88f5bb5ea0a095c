"""Folders that a finished one can take the place of."""

from __future__ import annotations

from pathlib import Path

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.pipeline.environment import check_vacant


def test_a_folder_that_cannot_be_replaced_is_refused(tmp_path: Path, monkeypatch):
    """A shell would be left in the folder that was there before, and a mount point cannot be renamed."""
    for vacant in (tmp_path / "new", tmp_path):
        check_vacant(vacant)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the current folder"):
        check_vacant(tmp_path)
    check_vacant(tmp_path / "new")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")  # Only root can mount one.
    with pytest.raises(InputError, match="a mount point"):
        check_vacant(tmp_path / "disk")
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="exists already"):
            check_vacant(taken)
