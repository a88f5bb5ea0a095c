"""Commands on a machine that fails at a random moment say why, and run again, end as if it never had."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import struct
import sys
import time
from pathlib import Path
from random import Random

import pytest

from factsmith.artifacts.store import Store
from tests.campaigns.campaign import Campaign
from tests.campaigns.commands import begin, finish, left


def _obey_modes() -> None:
    """Give up the superuser's right to write to what is read-only."""
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # Version 3 of Linux's capabilities, of this process.
    assert ctypes.CDLL(None).capset(header, none) == 0


def _whole(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], float]:
    """What a run leaves that nothing happens to, and the seconds that it takes."""
    monkeypatch.setenv("FACTSMITH_HOME", str(folder / "home"))
    seconds = finish(arguments)
    return left(folder), seconds


def _sound(folder: Path) -> None:
    """Nothing damaged or half-written is in the store below ``folder``."""
    store = Store(folder / "home")
    assert not [fault for path in store.all_paths() for fault in store.verify(path)]


def _check_said(said: Path, words: tuple[str, ...]) -> None:
    text = said.read_text()
    assert "Traceback" not in text, text[-3000:]
    assert any(word in text for word in words), text[-3000:]


@pytest.mark.slow
def test_a_disk_that_fills(arguments, small_disk, tmp_path, monkeypatch):
    wanted, _ = _whole(words := ["run", *arguments()], tmp_path / "whole", monkeypatch)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()) // 1024
    campaign = Campaign("a disk that fills", few=3)
    disk, resize = small_disk
    monkeypatch.setenv("FACTSMITH_HOME", str(disk / "home"))
    for case in campaign.cases():
        resize(campaign.random.randint(1, size))
        process = begin(words, said := tmp_path / f"{case}.txt")
        process.join(600)
        if process.exitcode == 0:
            campaign.counts["had enough"] += 1
        else:
            assert process.exitcode == 2, said.read_text()[-3000:]
            _check_said(said, ("disk", "written"))
            campaign.counts["said so"] += 1
        resize(4 * size)
        _sound(disk)
        finish(words)
        assert left(disk) == wanted
        campaign.counts["ended as if it never had"] += 1
        shutil.rmtree(disk / "home")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, to give up the superuser's rights")
def test_a_store_that_turns_read_only(arguments, tmp_path, monkeypatch):
    wanted, seconds = _whole(words := ["run", *arguments()], tmp_path / "whole", monkeypatch)
    campaign = Campaign("a store that turns read-only", few=3)
    for case in campaign.cases():
        folder = tmp_path / str(case)
        monkeypatch.setenv("FACTSMITH_HOME", str(home := folder / "home"))
        home.mkdir(parents=True)
        process = begin(words, said := folder / "said.txt", _obey_modes)
        process.join(campaign.random.uniform(0, seconds))
        _set_modes(home, writable=False)
        process.join(600)
        _set_modes(home, writable=True)
        if process.exitcode == 0:
            campaign.counts["had ended"] += 1
        else:
            assert process.exitcode == 2, said.read_text()[-3000:]
            _check_said(said, ("cannot be written", "could not read or write the files"))
            campaign.counts["said so"] += 1
        _sound(folder)
        finish(words)
        assert left(folder) == wanted
        campaign.counts["ended as if it never had"] += 1
        shutil.rmtree(folder)


def _set_modes(folder: Path, *, writable: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # The command is at work.
            mode = path.stat().st_mode
            path.chmod(mode | 0o200 if writable else mode & ~0o222)


def _jumping_clock(seed: int) -> None:
    """The clock jumps by up to ten years, back or on, every few times that somebody looks at it."""
    random, true_time = Random(seed), time.time
    offset = 0.0

    def jumping() -> float:
        nonlocal offset
        if random.random() < 0.05:
            offset = random.choice([0.0, random.uniform(-3e8, 3e8), random.uniform(-3600, 3600)])
        return true_time() + offset

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)


@pytest.mark.slow
def test_a_clock_that_jumps(arguments, tmp_path, monkeypatch):
    wanted, _ = _whole(words := ["run", *arguments()], tmp_path / "whole", monkeypatch)
    campaign = Campaign("a clock that jumps", few=2)
    for case in campaign.cases():
        folder = tmp_path / str(case)
        monkeypatch.setenv("FACTSMITH_HOME", str(folder / "home"))
        process = begin(words, said := tmp_path / f"{case}.txt", _jumping_clock, case)
        process.join(600)
        assert process.exitcode == 0, said.read_text()[-3000:]
        assert left(folder) == wanted
        _sound(folder)
        campaign.counts["ended as with a true clock"] += 1
        shutil.rmtree(folder)
