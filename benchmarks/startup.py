"""How long each command takes to answer, and what its imports cost.

    python benchmarks/startup.py [--imports-only]

Commands run in a fresh home, so the first `run` builds everything and the second finds everything. Times depend on the
machine and on what else runs on it; the share of imports and the order of the modules hardly do.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_CLI = ["-m", "factsmith.flows.cli"]

_COMMANDS: Sequence[tuple[str, Sequence[str], float | None]] = (
    ("--help", ["--help"], None),
    ("conf", ["conf"], 1),
    ("run, nothing cached", ["run"], 18),
    ("run, all cached", ["run"], 6),
    ("plan", ["plan"], 3),
    ("store ls", ["store", "ls"], 1),
    ("store show", ["store", "show", "{artifact}"], 1),
    ("runs", ["runs"], 1),
    ("compare", ["compare", "{first}", "{second}"], 1),
)
"""What is run in this order, and the seconds that it should take on an idle machine with two cores."""

_HEAVIEST = 10
_IMPORTED = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imports-only", action="store_true", help="only the modules that each command imports")
    only = parser.parse_args().imports_only
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "FACTSMITH_HOME": str(Path(folder) / "home"), "PREFECT_API_URL": ""}
        if not only:
            print(f"{'command':22} {'seconds':>8} {'goal':>6} {'CPU s':>8}")
            for name, words, goal in _COMMANDS:
                given = [word.format(**_known(environment)) if "{" in word else word for word in words]
                wall, cpu = _time([sys.executable, *_CLI, *given], environment)
                print(f"{name:22} {wall:8.2f} {'' if goal is None else f'{goal:g}':>6} {cpu:8.2f}", flush=True)
        for name, module in _MODULES.items():
            print(f"\n{name}: the {_HEAVIEST} heaviest imports, in milliseconds with what they import")
            for milliseconds, imported in _heaviest(module, environment):
                print(f"{milliseconds:8.0f}  {imported}")


_MODULES: Mapping[str, str] = {
    "import factsmith": "factsmith",
    "factsmith.edit": "factsmith.api.editing",
    "conf": "factsmith.flows.configuration.composition",
    "plan": "factsmith.tasks.planning.plan",
    "run": "factsmith.flows.run",
}
"""The module that a command imports, which imports the rest."""


def _time(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command, with its child processes."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise SystemExit(done.stderr)
    return wall, sum(after[2:4]) - sum(before[2:4])


def _known(environment: Mapping[str, str]) -> dict[str, str]:
    """An artifact, and the two runs, of this home."""
    import json

    def ask(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *_CLI, *words], env=dict(environment), capture_output=True, text=True, check=True
        ).stdout

    first, second = (run["id"] for run in json.loads(ask("runs", "--json"))["runs"])
    artifact = json.loads(ask("store", "ls", "--json"))[0]
    return {"first": first, "second": second, "artifact": f"{artifact['kind']}/{artifact['digest']}"}


def _heaviest(module: str, environment: Mapping[str, str]) -> list[tuple[float, str]]:
    """The modules outside Factsmith whose import takes longest, each with the time of all that it imports."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
    found: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if (match := _IMPORTED.match(line)) and "." not in match[4] and not match[4].startswith("factsmith"):
            found[match[4]] = max(found.get(match[4], 0), int(match[2]) / 1000)
    return sorted(((cost, name) for name, cost in found.items()), reverse=True)[:_HEAVIEST]


if __name__ == "__main__":
    main()
