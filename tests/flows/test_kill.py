"""A run that is killed at any stage continues there, and ends with the same bytes."""

from __future__ import annotations

import pytest

from factsmith.artifacts.store import Store
from tests.runs import KINDS, artifacts, contents, states


@pytest.mark.slow
def test_killed_at_every_stage_in_turn(killed, pipeline, store, tmp_path, monkeypatch):
    for place, kind in enumerate(KINDS):
        killed(kind)
        assert {path.parent.parent.name for path in store.all_paths()} == set(KINDS[:place])
        assert list((store.root / "staging").iterdir()), "nothing was being written"
    report = pipeline()
    assert {name for name, state in states(report).items() if state == "built"} == {"evaluation"}
    assert not list((store.root / "staging").iterdir())
    interrupted = contents(store)

    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    again = pipeline()
    assert contents(Store(tmp_path / "there")) == interrupted
    assert again.metrics == report.metrics


def test_killed_between_shards_only_the_rest_is_collected(killed, pipeline, store):
    killed("keys", 4)  # two layers: three shards of four are published
    published = {one.digest: one.path.stat().st_mtime_ns for one in artifacts(store, "keys")}
    assert len(published) == 3
    pipeline()
    after = {one.digest: one.path.stat().st_mtime_ns for one in artifacts(store, "keys")}
    assert len(after) == 4
    assert published.items() <= after.items()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ft", "grace", "lora", "melo", "serac", "ultraedit", "wise"])
def test_a_sequence_of_an_editor_goes_on_where_it_was_killed(method, killed, pipeline, store, tmp_path, monkeypatch):
    given = [
        f"method={method}", "method.batch_size=1", "dataset.batches=4", "method.layers=[1]", "drift.edits=0",
        "method.sequence.history=none", "method.sequence.evaluate_at=[1,2,3,4]",
    ]  # fmt: skip
    killed("edit", 3, *given)
    published = {one.digest: one.path.stat().st_mtime_ns for one in artifacts(store, "edit")}
    assert len(published) == 2
    pipeline(*given)
    after = {one.digest: one.path.stat().st_mtime_ns for one in artifacts(store, "edit")}
    assert len(after) == 4
    assert published.items() <= after.items()
    interrupted = contents(store)
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    pipeline(*given)
    assert contents(Store(tmp_path / "there")) == interrupted
