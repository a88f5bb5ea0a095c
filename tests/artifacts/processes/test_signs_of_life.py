"""A process is known to be dead as soon as it is, and never before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from factsmith.artifacts.processes import signs_of_life
from factsmith.artifacts.processes.machine import machine
from factsmith.artifacts.processes.signs_of_life import dead, living, sign_of_life

_LIVES = """
import sys, time
from pathlib import Path
from factsmith.artifacts.processes.signs_of_life import sign_of_life
with sign_of_life(Path(sys.argv[1]), {"run": "a"}):
    print("here", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_is_dead_at_once_and_was_last_seen_before(tmp_path):
    path = tmp_path / "signs" / "a.json"
    process = subprocess.Popen([sys.executable, "-c", _LIVES, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    assert living(path) == {"machine": machine(), "run": "a"}
    assert list(dead(path.parent)) == []
    os.utime(path, (1000, 1000))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert living(path) is None
    (sign,) = dead(path.parent)
    assert (sign.content["run"], sign.seen) == ("a", 1000)


def test_what_is_noted_about_the_dead_is_kept_until_it_is_removed(tmp_path):
    with sign_of_life(tmp_path / "a.json", {"run": "a"}) as sign:
        before = sign.seen
        time.sleep(0.02)
        sign.renew()
    for one in dead(tmp_path):
        assert one.seen > before
        one.write(marked=True)
    (again,) = dead(tmp_path)
    assert again.content == {"machine": machine(), "run": "a", "marked": True}
    assert again.seen == one.seen
    again.remove()
    assert list(dead(tmp_path)) == []
    assert living(tmp_path / "a.json") is None


def test_only_one_looks_at_a_dead_one(tmp_path):
    with sign_of_life(tmp_path / "a.json", {}):
        pass
    for _ in dead(tmp_path):
        assert list(dead(tmp_path)) == []


def test_what_is_no_sign_is_passed_over(tmp_path):
    (tmp_path / "half.json").write_text("{")
    assert list(dead(tmp_path)) == []
    assert list(dead(tmp_path / "nowhere")) == []


def test_a_process_of_another_machine_is_dead_only_after_a_long_silence(tmp_path, monkeypatch):
    """Locks may not reach from one machine to another. What this one sees of a living run is then an unlocked file."""
    path = tmp_path / "a.json"
    with monkeypatch.context() as patch:
        patch.setattr(signs_of_life, "machine", lambda: "elsewhere, booted today")
        with sign_of_life(path, {"run": "a"}) as sign:
            assert sign.content == {"machine": "elsewhere, booted today", "run": "a"}
            (tmp_path / "here.json").write_text(path.read_text())
        path.unlink()
    assert list(dead(tmp_path)) == []  # unlocked, but renewed a moment ago
    file = tmp_path / "here.json"
    then = file.stat().st_mtime - signs_of_life._SILENT - 10
    os.utime(file, (then, then))
    monkeypatch.setattr(time, "time", lambda: 0.0)  # This machine's clock does not count.
    assert [one.content["run"] for one in dead(tmp_path)] == ["a"]


def test_what_is_served_on_another_machine_is_not_served_here(tmp_path, monkeypatch):
    with sign_of_life(tmp_path / "served.json", {"api": "http://127.0.0.1:4200/api"}):
        assert living(tmp_path / "served.json")["api"]
        monkeypatch.setattr(signs_of_life, "machine", lambda: "elsewhere")
        assert living(tmp_path / "served.json") is None


def test_a_process_renews_its_sign_while_it_works(tmp_path, monkeypatch):
    monkeypatch.setattr(signs_of_life, "_RENEWED", 0.02)
    path = tmp_path / "a.json"
    with sign_of_life(path, {}):
        os.utime(path, (1000, 1000))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 1000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1000
