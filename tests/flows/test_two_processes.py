"""Two runs with one store at the same time build each artifact once."""

from __future__ import annotations

import json
from collections import Counter

from factsmith.artifacts.store import Store
from tests.processes import count_what_is_built, start
from tests.runs import KINDS, contents


def test_each_artifact_is_built_once(home, arguments, tmp_path):
    ready = [tmp_path / "one", tmp_path / "two"]
    found = [tmp_path / "one.json", tmp_path / "two.json"]
    processes = [
        start(count_what_is_built, *ready, found[0], arguments()),
        start(count_what_is_built, *ready[::-1], found[1], arguments("dataset.batches=3")),
    ]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    answers = [json.loads(path.read_text()) for path in found]

    built = Counter(address for answer in answers for address in answer["built"])
    assert set(built.values()) == {1}
    assert set(built) == set(contents(Store(home)))
    assert {address.partition("/")[0] for address in built} == set(KINDS)
    # A stage says it built what it built: of two that want the same, the one that waited found it.
    for stage in ("model", "tokens", "keys", "covariance", "factor", "contexts"):
        states = [answer["states"][stage] for answer in answers]
        assert "built" in states
        assert (states == ["built", "built"]) <= (sum(address.startswith(f"{stage}/") for address in built) > 1)
