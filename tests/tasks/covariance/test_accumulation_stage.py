"""Covariances of keys that are not stored: the same bytes, and no key is computed twice."""

from __future__ import annotations

import pytest

from factsmith.artifacts.removal import alone, dependants, remove
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.covariance.moments import Moments
from factsmith.tasks.keys import stage as keys_stage
from factsmith.tasks.planning.plan import StagePlan, plan
from factsmith.tasks.planning.run import Run
from tests.runs import artifacts, contents, states

MANY = "corpus.dynamic_multiplier=45"


class Killed(BaseException):
    """Nothing in the pipeline may catch it."""


@pytest.fixture(autouse=True)
def _small_shards(plain_flows, home, monkeypatch):
    monkeypatch.setattr(keys_stage, "_SHARD_ROWS", 400)


@pytest.fixture
def unkept(arguments):
    """Precompute without keeping keys."""
    return lambda *more: precompute(compose(arguments("corpus.keep_keys=false", "runtime.checkpoint_seconds=0", *more)))


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Keys that are added up, of every layer, as they are."""
    seen: list[int] = []
    update = Moments.update
    monkeypatch.setattr(Moments, "update", lambda self, keys: seen.append(len(keys)) or update(self, keys))
    return seen


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_covariances_are_those_of_kept_keys_to_the_byte(unkept, arguments, store, tmp_path, monkeypatch, dtype):
    report = unkept(MANY, f"corpus.key_dtype={dtype}")
    assert list(states(report)) == ["model", "tokens", "covariance", "factor"]
    assert not artifacts(store, "keys")
    found = {one.address: one.manifest.content for one in artifacts(store, "covariance")}
    assert len(found) == 2

    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    precompute(compose(arguments(MANY, f"corpus.key_dtype={dtype}")))
    assert found.items() <= contents(Store(tmp_path / "there")).items()


@pytest.mark.parametrize("keep", [pytest.param(True, marks=pytest.mark.slow), False])
def test_float32_products_move_no_score(arguments, home, tmp_path, monkeypatch, keep):
    given = arguments(MANY, f"corpus.keep_keys={keep}", "dataset.batches=1")
    exact = run(compose(given))
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    quick = run(compose([*given, "runtime.products=float32"]))
    for phase, metrics in exact.metrics.items():
        assert quick.metrics[phase] == pytest.approx(metrics, abs=1e-3)
    made = {one.manifest.made["products"] for one in artifacts(Store(tmp_path / "there"), "covariance")}
    assert made == {"float32"}
    assert {one.manifest.made["products"] for one in artifacts(Store(home), "covariance")} == {"float64"}


def test_kept_or_not_they_answer_for_each_other(unkept, arguments):
    unkept(MANY)
    assert states(unkept(MANY))["covariance"] == "cached"
    assert states(precompute(compose(arguments(MANY))))["covariance"] == "cached"


def test_a_killed_run_continues_after_the_last_checkpoint(unkept, store, rows, tmp_path, monkeypatch):
    update = Moments.update

    def dies(self, keys):
        if sum(rows) >= 2 * 1000:  # of two layers
            raise Killed
        update(self, keys)

    monkeypatch.setattr(Moments, "update", dies)
    with pytest.raises(Killed):
        unkept(MANY)
    (checkpoint,) = artifacts(store, "accumulation")  # those before are gone
    assert checkpoint.summary["tokens"] == 1024
    assert not artifacts(store, "covariance")

    monkeypatch.setattr(Moments, "update", update)
    rows.clear()
    unkept(MANY)
    assert sum(rows) == 2 * (45 * 40 - 1024)
    found = {one.address: one.manifest.content for one in artifacts(store, "covariance")}
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    unkept(MANY)
    assert found.items() <= contents(Store(tmp_path / "there")).items()


def test_a_larger_multiplier_continues_a_smaller_one(unkept, rows):
    unkept(MANY)
    rows.clear()
    unkept("corpus.dynamic_multiplier=60")
    assert sum(rows) == 2 * (60 * 40 - 1024)


def test_only_the_layers_that_lack_one_are_added_up(unkept, rows):
    unkept(MANY, "method.layers=[1]")
    rows.clear()
    unkept(MANY, "method.layers=[0,1]")
    assert sum(rows) == 45 * 40


@pytest.mark.slow
def test_killed_between_two_layers_a_run_continues_from_the_checkpoint_of_both(unkept, store, rows):
    unkept(MANY)
    before = {one.key["layer"]: one for one in artifacts(store, "covariance")}
    with alone(store):
        remove(store, [before[1].path])
    rows.clear()
    unkept(MANY)
    assert sum(rows) == 45 * 40 - 1024
    after = {one.key["layer"]: one for one in artifacts(store, "covariance")}
    assert after[1].manifest.content == before[1].manifest.content
    assert len(artifacts(store, "accumulation")) == 1


def test_they_and_their_checkpoint_are_made_from_model_and_tokens(unkept, store):
    unkept(MANY)
    for kind in ("model", "tokens"):
        (source,) = artifacts(store, kind)
        found = {place.partition("/")[0] for place in dependants([source.place], store.manifests())}
        assert found == {"accumulation", "covariance", "factor"}


def test_a_plan_counts_what_a_checkpoint_has(unkept, arguments, store):
    def planned() -> StagePlan:
        stages = plan(Run(compose(arguments("corpus.keep_keys=false", MANY)), store), dataset=False)
        return next(stage for stage in stages if stage.name == "covariance")

    whole = planned().flop
    unkept(MANY)
    assert planned().flop == planned().bytes == 0
    with alone(store):
        remove(store, [one.path for one in artifacts(store, "covariance")])
    assert planned().flop == pytest.approx(whole * (1 - 1024 / 1800))
