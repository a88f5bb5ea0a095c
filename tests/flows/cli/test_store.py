"""``factsmith store gc`` and ``rm``."""

from __future__ import annotations

import json

import pytest

from tests.runs import contents


@pytest.fixture
def prepared(factsmith, plain_flows, arguments) -> dict[str, str]:
    """Addresses by stage, after ``precompute``."""
    report = json.loads(factsmith("precompute", "--json", *arguments()).out)
    return {stage["name"]: stage["artifact"] for stage in report["stages"]}


def kinds(store) -> list[str]:
    return sorted({path.parent.parent.name for path in store.all_paths()})


def test_what_others_were_made_from_is_only_removed_with_them(factsmith, refused, prepared, store, arguments):
    before = contents(store)
    message = refused("store", "rm", prepared["keys"], clean=False)
    assert "4 other artifacts were made from" in message  # covariance and factor of two layers
    assert "covariance/" in message
    assert "factor/" in message
    assert contents(store) == before

    result = factsmith("store", "rm", prepared["keys"], "--dependants", "--dry-run")
    assert "2 keys artifacts" in result.out
    assert "would free" in result.out
    assert contents(store) == before

    assert factsmith("store", "rm", prepared["keys"], "--force").code == 0
    assert kinds(store) == ["covariance", "factor", "model", "tokens"]
    assert factsmith("store", "verify").code == 0

    # Whoever has C0 does not build its keys again.
    stages = json.loads(factsmith("precompute", "--json", *arguments()).out)["stages"]
    assert [stage["name"] for stage in stages] == ["model", "tokens", "covariance", "factor"]
    assert {stage["state"] for stage in stages} == {"cached"}
    assert factsmith("store", "rm", prepared["covariance"], "--force").code == 0
    assert factsmith("precompute", *arguments()).code == 0
    assert contents(store) == before  # C0 itself needs them, and they have the same bytes again
    assert factsmith("store", "rm", prepared["keys"][:16], prepared["factor"], "--dependants").code == 0
    assert kinds(store) == ["model", "tokens"]


def test_what_is_not_there_is_not_removed(refused, factsmith, home):
    assert "No artifacts" in refused("store", "rm", "keys/abc")
    assert not home.exists()
    assert factsmith("store", "rm").code == 2


def test_gc_takes_what_nothing_needs(factsmith, prepared, store):
    before = contents(store)
    (store.root / "staging" / "half").mkdir()
    (store.root / "staging" / "half" / "file").write_bytes(b"123")
    assert "1 staging, 3 bytes" in factsmith("store", "gc", "--dry-run").out
    assert (store.root / "staging" / "half").exists()
    result = factsmith("store", "gc")
    assert "1 staging, 3 bytes" in result.out
    assert "freed 3 bytes" in result.out
    assert contents(store) == before
    assert "freed 0 bytes" in factsmith("store", "gc", "--unused", "1").out
    assert contents(store) == before
    assert factsmith("store", "gc", "--unused", "0").code == 0
    assert store.all_paths() == []


def test_gc_where_there_is_no_store(factsmith, home):
    assert "nothing to remove" in factsmith("store", "gc").out
    assert not home.exists()


def test_nothing_is_removed_during_a_run(refused, prepared, store):
    with store.in_use():
        assert "is in use" in refused("store", "gc", clean=False)
        assert "is in use" in refused("store", "rm", prepared["factor"], clean=False)
    assert "factor" in kinds(store)
