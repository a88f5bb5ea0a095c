"""CPU time of ``precompute`` with workers of Ray, compared with one process: user and system time of all processes.

    .venv/bin/python -m benchmarks.engines --multiplier 200 --workers 4

A short run shows what starting costs. The ratio is that of what a long run takes beyond it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

_SECONDS_BETWEEN_LOOKS = 0.2


def cpu_seconds(arguments: list[str], home: Path) -> float:
    """CPU seconds of a command and of all processes that it has started, as they were when last seen."""
    environment = {**os.environ, "FACTSMITH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("factsmith")), *arguments]
    seen: dict[tuple[int, float], float] = {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            for one in [root, *root.children(recursive=True)]:
                try:
                    used = one.cpu_times()
                    seen[one.pid, one.create_time()] = used.user + used.system
                except psutil.Error:
                    continue
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return sum(seen.values())


def main() -> None:
    """Run both, and print their CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--multiplier", type=int, default=200, help="d_m of the long run")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("settings", nargs="*", default=["corpus.keep_keys=false"], help="further settings")
    given = parser.parse_args()
    engines = {
        "one process": [],
        f"{given.workers} workers": ["runtime.engine=ray", f"runtime.ray.workers={given.workers}"],
    }
    found: dict[str, tuple[float, float]] = {}
    for name, engine in engines.items():
        both = []
        for multiplier in (2, given.multiplier):
            with tempfile.TemporaryDirectory() as home:
                arguments = ["precompute", f"corpus.dynamic_multiplier={multiplier}", "runtime.threads=1"]
                both.append(cpu_seconds([*arguments, *engine, *given.settings], Path(home)))
        found[name] = both[0], both[1]
        print(
            f"{name}: start {both[0]:.1f} s, whole run {both[1]:.1f} s, the work {both[1] - both[0]:.1f} s", flush=True
        )
    (alone, whole), (started, shared) = found.values()
    print(f"ratio of the work: {(shared - started) / (whole - alone):.2f}; of whole runs: {shared / whole:.2f}")


if __name__ == "__main__":
    main()
