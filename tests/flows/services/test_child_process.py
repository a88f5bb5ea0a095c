"""The child processes of a run end with it, even if it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

_STARTS = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "factsmith.flows.services.child_process", str(os.getpid()), "timeit", "-n1", "-r1"]
print(subprocess.Popen([*command, "import time; time.sleep(60)"], process_group=0).pid, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_has_started_ends():
    process = subprocess.Popen([sys.executable, "-c", _STARTS], stdout=subprocess.PIPE, text=True)
    started = int(process.stdout.readline())
    time.sleep(2)
    os.kill(started, 0)  # it lives as long as whoever started it
    process.kill()
    began = time.monotonic()
    process.stdout.read()  # until nobody holds it open any more
    assert time.monotonic() - began < 30
    process.wait()


def test_a_module_is_run_as_python_runs_it():
    command = [
        sys.executable,
        "-m",
        "factsmith.flows.services.child_process",
        str(os.getpid()),
        "calendar",
        "2026",
        "13",
    ]
    plain = subprocess.run(
        [sys.executable, "-m", "calendar", "2026", "13"], check=False, capture_output=True, text=True
    )
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (plain.returncode, plain.stdout)
    assert plain.returncode != 0
