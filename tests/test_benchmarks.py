"""The benchmark of a GPU does all of its work on a CPU too, at a small shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.servers import clean_environment


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "seconds"), [("gpt2-xl", 0), ("llama-3-8b", 300)])
def test_the_benchmark_of_a_gpu(tmp_path: Path, shape: str, seconds: int):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--shape", shape, "--seconds", str(seconds)]
    command += ["--device", "cpu", "--results", tmp_path]
    done = subprocess.run(command, env=clean_environment(), check=True, capture_output=True, text=True, timeout=600)
    assert f"{shape}, small on CPU" in done.stdout
    assert "There is no GPU here" in done.stdout
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    works = {row["work"]: row for row in found["rows"]}
    assert {"model", "covariance", "factor", "values", "edit", "evaluation"} <= set(works)
    assert all(row["seconds"] > 0 for row in works.values())
    left_out = "plain: keys and C0 layer by layer" in found["left_out"]
    assert left_out == (seconds == 0)
    table = (tmp_path / f"{shape}-cpu.md").read_text()
    assert "| values |" in table
    assert ("ten heaviest" in table) == (seconds > 0)
