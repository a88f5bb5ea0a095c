"""Covariances of keys that are not kept: the same bytes, and never a key twice."""

from __future__ import annotations

import pytest

from factsmith.artifacts.store import Store
from factsmith.flows.configuration import compose
from factsmith.flows.precompute import precompute
from factsmith.tasks import key_reader
from factsmith.tasks.numerics.moments import Moments
from tests.flows.conftest import artifacts, contents, states

MANY = "corpus.dynamic_multiplier=45"


class Killed(BaseException):
    """Nothing in the pipeline may catch it."""


@pytest.fixture(autouse=True)
def _small_shards(prefect_server, home, monkeypatch):
    monkeypatch.setattr(key_reader, "_SHARD_ROWS", 400)


@pytest.fixture
def unkept(words):
    """Precompute without keeping keys."""
    return lambda *more: precompute(compose(words("corpus.keep_keys=false", "runtime.checkpoint_seconds=0", *more)))


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Keys that are added up, of every layer, as they are."""
    seen: list[int] = []
    update = Moments.update
    monkeypatch.setattr(Moments, "update", lambda self, keys: seen.append(len(keys)) or update(self, keys))
    return seen


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_covariances_are_those_of_kept_keys_to_the_byte(unkept, words, store, tmp_path, monkeypatch, dtype):
    report = unkept(MANY, f"corpus.key_dtype={dtype}")
    assert list(states(report)) == ["model", "tokens", "covariance", "factor"]
    assert not artifacts(store, "keys")
    found = {one.address: one.manifest.content for one in artifacts(store, "covariance")}
    assert len(found) == 2

    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    precompute(compose(words(MANY, f"corpus.key_dtype={dtype}")))
    assert found.items() <= contents(Store(tmp_path / "there")).items()


def test_kept_or_not_they_answer_for_each_other(unkept, words):
    unkept(MANY)
    assert states(unkept(MANY))["covariance"] == "cached"
    assert states(precompute(compose(words(MANY))))["covariance"] == "cached"


def test_killed_it_goes_on_after_the_last_checkpoint(unkept, store, rows, tmp_path, monkeypatch):
    update = Moments.update

    def dies(self, keys):
        if sum(rows) >= 2 * 1000:  # of two layers
            raise Killed
        update(self, keys)

    monkeypatch.setattr(Moments, "update", dies)
    with pytest.raises(Killed):
        unkept(MANY)
    (checkpoint,) = artifacts(store, "accumulation")  # those before are gone
    assert checkpoint.summary["tokens"] == 800
    assert not artifacts(store, "covariance")

    monkeypatch.setattr(Moments, "update", update)
    rows.clear()
    unkept(MANY)
    assert sum(rows) == 2 * (45 * 40 - 800)
    found = {one.address: one.manifest.content for one in artifacts(store, "covariance")}
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    unkept(MANY)
    assert found.items() <= contents(Store(tmp_path / "there")).items()


def test_a_larger_multiplier_goes_on_where_a_smaller_one_ended(unkept, rows):
    unkept(MANY)
    rows.clear()
    unkept("corpus.dynamic_multiplier=60")
    assert 0 < sum(rows) <= 2 * (60 * 40 - 1200)


def test_only_the_layers_that_lack_one_are_added_up(unkept, rows):
    unkept(MANY, "method.layers=[1]")
    rows.clear()
    unkept(MANY, "method.layers=[0,1]")
    assert sum(rows) == 45 * 40
