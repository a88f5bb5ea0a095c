"""Checksums that are remembered are those of the bytes that are there."""

from __future__ import annotations

import hashlib
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


def test_many_files_are_read_once_each(tmp_path, monkeypatch):
    checksums = Checksums(tmp_path / "checksums.sqlite")
    files = [tmp_path / f"file {number}" for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 1000)
    expected = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    known = checksums.sha256(files[3])
    read: list[object] = []
    whole = Checksums.read
    monkeypatch.setattr(Checksums, "read", staticmethod(lambda path: (read.append(path), whole(path))[1]))
    assert checksums.sha256_all(files) == expected
    assert sorted(map(str, read)) == sorted(str(file) for file in files if file != files[3])
    assert expected[files[3]] == known
    assert list(checksums.sha256_all(files)) == files  # in their order, and from memory
    assert len(read) == 19
