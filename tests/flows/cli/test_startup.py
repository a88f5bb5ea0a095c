"""Commands that only look something up answer at once, so they import nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "prefect", "mlflow", "zarr", "matplotlib", "pandas", "datasets"]

_PROGRAM = """
import json, sys
from factsmith.flows.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["factsmith", *words]
    try:
        main()
    except SystemExit as left:
        assert not left.code, words
    print("END", json.dumps([words, sorted(set({heavy}) & set(sys.modules))]))
"""


@pytest.fixture
def imported(factsmith, plain_flows, arguments, home):
    """Runs commands in a process of their own, in a home with two runs. Returns what each says and what is imported."""
    first, second = (
        json.loads(factsmith("run", *arguments(f"method.slack={slack}"), "--json").out)["mlflow_run_id"]
        for slack in (1, 2)
    )
    artifact = json.loads(factsmith("store", "ls", "--json").out)[0]
    known = {"first": first, "second": second, "artifact": f"{artifact['kind']}/{artifact['digest']}"}

    def call(*commands):
        given = [[word.format(**known) for word in words] for words in commands]
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.replace("{heavy}", repr(HEAVY)), json.dumps(given)],
            env={**os.environ, "FACTSMITH_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.stderr
        assert done.returncode == 0
        said, found = "", []
        for line in done.stdout.splitlines(keepends=True):
            if line.startswith("END "):
                words, heavy = json.loads(line.removeprefix("END "))
                assert said, words
                found.append((words, said, heavy))
                said = ""
            else:
                said += line
        assert len(found) == len(given)
        return found

    return call


def test_light_commands_import_nothing_heavy_and_a_plan_neither_prefect_nor_mlflow(imported, arguments):
    """One after the other in one process. What one of them imports, those after it have too."""
    *light, plan = imported(
        ["conf"],
        ["conf", "--json"],
        ["store", "ls"],
        ["store", "show", "{artifact}"],
        ["runs"],
        ["runs", "{first}"],
        ["compare", "{first}", "{second}"],
        ["plan", *arguments()],
    )
    for words, _, heavy in light:
        assert not heavy, words
    _, said, heavy = plan
    assert "cached" in said
    assert set(heavy) <= {"torch", "transformers"}
