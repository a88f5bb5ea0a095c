"""A process is known to be dead as soon as it is, and never before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

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
    assert living(path) == {"run": "a"}
    assert list(dead(path.parent)) == []
    os.utime(path, (1000, 1000))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert living(path) is None
    (sign,) = dead(path.parent)
    assert (sign.content, sign.seen) == ({"run": "a"}, 1000)


def test_what_is_noted_about_the_dead_is_kept_until_it_is_removed(tmp_path):
    with sign_of_life(tmp_path / "a.json", {"run": "a"}) as sign:
        before = sign.seen
        time.sleep(0.02)
        sign.renew()
    for one in dead(tmp_path):
        assert one.seen > before
        one.write(marked=True)
    (again,) = dead(tmp_path)
    assert again.content == {"run": "a", "marked": True}
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
