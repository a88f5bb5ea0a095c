"""Checksums that are remembered are those of the bytes that are there."""

from __future__ import annotations

import os

from factsmith.artifacts.checksums import Checksums


def test_a_file_that_is_written_to_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    checksums = Checksums(tmp_path / "checksums.sqlite")
    read = Checksums.read

    def interrupted(path):
        found = read(path)
        file.write_bytes(b"new")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Checksums, "read", staticmethod(interrupted))
        checksums.sha256(file)
    assert checksums.sha256(file) == read(file)


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    checksums = Checksums(tmp_path / "checksums.sqlite")
    found = checksums.sha256(file)
    with monkeypatch.context() as patch:
        patch.setattr(Checksums, "read", staticmethod(lambda path: "another"))
        assert checksums.sha256(file) == found
    stat = file.stat()
    file.write_bytes(b"new")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # Size and time as before.
    assert checksums.sha256(file) == Checksums.read(file) != found
