"""Commands on a machine that fails at a random moment say why, and run again, end as if it never had."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from random import Random

import pytest

from factsmith.artifacts.store import Store
from tests.campaigns.campaign import Campaign
from tests.campaigns.commands import begin, finish, left

NOBODY = 65534
"""A user who may only write to what is theirs. The superuser may write everywhere."""


def _set_user() -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)


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
            assert process.exitcode == 2
            _check_said(said, ("disk", "written"))
            campaign.counts["said so"] += 1
        resize(4 * size)
        _sound(disk)
        finish(words)
        assert left(disk) == wanted
        campaign.counts["ended as if it never had"] += 1
        shutil.rmtree(disk / "home")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_a_store_that_turns_read_only(arguments, gpt2_folder, tmp_path_factory, monkeypatch):
    base = Path("/tmp") / f"factsmith-{os.getpid()}"  # noqa: S108 - The other user may not look into pytest's.
    model = shutil.copytree(gpt2_folder, base / "model")
    words = ["run", *arguments(f"model.path={model}")]
    wanted, seconds = _whole(words, base / "whole", monkeypatch)
    campaign = Campaign("a store that turns read-only", few=3)
    try:
        for case in campaign.cases():
            folder = base / str(case)
            (folder / "home").mkdir(parents=True)
            _give(base)
            monkeypatch.setenv("FACTSMITH_HOME", str(folder / "home"))
            process = begin(words, said := folder / "said.txt", _set_user)
            process.join(campaign.random.uniform(0, seconds))
            _forbid(folder / "home", allowed=False)
            process.join(600)
            if process.exitcode == 0:
                campaign.counts["had ended"] += 1
            else:
                assert process.exitcode == 2, said.read_text()[-3000:]
                _check_said(said, ("cannot be written", "read-only", "readonly", "ermission"))
                campaign.counts["said so"] += 1
            _forbid(folder / "home", allowed=True)
            _sound(folder)
            finish(words)
            assert left(folder) == wanted
            campaign.counts["ended as if it never had"] += 1
            shutil.rmtree(folder)
    finally:
        _forbid(base, allowed=True)
        shutil.rmtree(base)


def _give(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def _forbid(folder: Path, *, allowed: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if allowed else mode & ~0o222)


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
