"""Commands that only look something up answer at once, so they import nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "prefect", "mlflow", "zarr", "matplotlib", "pandas", "datasets"]

_PROGRAM = """
import sys
from factsmith.flows.cli.main import main
try:
    main()
finally:
    print("HEAVY", *sorted(set({heavy}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def imported(factsmith, plain_flows, arguments, home):
    """Runs a command in a process of its own, in a home with two runs. Returns what it says and what it imports."""
    first, second = (
        json.loads(factsmith("run", *arguments(f"method.slack={slack}"), "--json").out)["mlflow_run_id"]
        for slack in (1, 2)
    )
    artifact = json.loads(factsmith("store", "ls", "--json").out)[0]
    known = {"first": first, "second": second, "artifact": f"{artifact['kind']}/{artifact['digest']}"}

    def call(words):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(heavy=HEAVY), *(word.format(**known) for word in words)],
            env={**os.environ, "FACTSMITH_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        said, _, heavy = done.stderr.partition("HEAVY")
        assert not said
        assert done.returncode == 0
        return done.stdout, heavy.split()

    return call


def test_light_commands_import_nothing_heavy_and_a_plan_neither_prefect_nor_mlflow(imported, arguments):
    for words in (
        ["conf"],
        ["conf", "--json"],
        ["store", "ls"],
        ["store", "show", "{artifact}"],
        ["runs"],
        ["runs", "{first}"],
        ["compare", "{first}", "{second}"],
    ):
        out, heavy = imported(words)
        assert out, words
        assert not heavy, words
    out, heavy = imported(["plan", *arguments()])
    assert "cached" in out
    assert set(heavy) <= {"torch", "transformers"}
