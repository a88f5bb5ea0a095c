"""Two runs of one store at the same time: each artifact is built once, by whoever comes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

from prefect.settings import PREFECT_API_URL

from factsmith.artifacts.store import Store
from tests.runs import KINDS, contents

COUNTED_RUN = """
import json, sys, time
from pathlib import Path

from factsmith.tasks.pipeline.environment import prepare_command_line

prepare_command_line()
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.run import run
from factsmith.tasks.keys import stage as keys_stage

mine, other, *arguments = sys.argv[1:]
key_reader._SHARD_ROWS = 400
publish = Store._publish
built = []

def publish_slowly(self, draft, seconds):
    time.sleep(0.2)  # so that the other process comes while this one builds
    publish(self, draft, seconds)
    built.append(draft.recipe.address)

Store._publish = publish_slowly
Path(mine).touch()
while not Path(other).exists():
    time.sleep(0.01)
report = run(compose(arguments))
rows = {stage.name: stage.state for stage in report.stages}
print(json.dumps({"built": built, "states": rows}))
"""


def test_each_artifact_is_built_once(prefect_server, home, arguments, tmp_path):
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "OMP_NUM_THREADS": "1"}
    ready = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTED_RUN, mine, theirs, *given],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
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
