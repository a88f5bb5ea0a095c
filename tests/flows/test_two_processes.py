"""Two runs of one store at the same time: each artifact is built once, by whoever comes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

from factsmith.artifacts.store import Store
from tests.conftest import ROOT
from tests.runs import KINDS, contents


def test_each_artifact_is_built_once(home, arguments, tmp_path):
    ready = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.counted_run", mine, theirs, *given],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for mine, theirs, given in ((*ready, arguments()), (*ready[::-1], arguments("dataset.batches=3")))
    ]  # fmt: skip
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))

    built = Counter(address for answer in answers for address in answer["built"])
    assert set(built.values()) == {1}
    assert set(built) == set(contents(Store(home)))
    assert {address.partition("/")[0] for address in built} == set(KINDS)
    # A stage says it built what it built: of two that want the same, the one that waited found it.
    for stage in ("model", "tokens", "keys", "covariance", "factor", "contexts"):
        states = [answer["states"][stage] for answer in answers]
        assert "built" in states
        assert (states == ["built", "built"]) <= (sum(address.startswith(f"{stage}/") for address in built) > 1)
