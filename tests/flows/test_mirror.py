"""A run that looks elsewhere for statistics before it computes them."""

from __future__ import annotations

import json

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.tasks.model.checkpoint import Checkpoint
from tests.runs import artifacts, contents, states


@pytest.fixture
def mirror(factsmith, plain_flows, arguments, store, tmp_path) -> str:
    """Statistics of the tiny model, pushed to a folder."""
    url = str(tmp_path / "mirror")
    assert factsmith("precompute", *arguments()).code == 0
    assert factsmith("store", "push", "factor", url).code == 0
    return url


@pytest.fixture
def there(tmp_path, monkeypatch, mirror) -> Store:
    """The store of another machine, where no model can be loaded."""
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    return Store(tmp_path / "there")


def test_statistics_are_fetched_with_the_addresses_that_they_had(factsmith, mirror, there, arguments, store):
    result = factsmith("precompute", "--json", "--from", mirror, *arguments())
    assert result.code == 0, result.err
    stages = {stage["name"]: stage["state"] for stage in json.loads(result.out)["stages"]}
    assert stages == dict.fromkeys(("model", "tokens", "covariance", "factor"), "fetched")
    assert contents(there) == {name: one for name, one in contents(store).items() if not name.startswith("keys/")}
    # From then on they are this machine's own.
    assert set(states(precompute(compose(arguments()))).values()) == {"cached"}
    assert not artifacts(there, "keys")


def test_what_is_not_there_is_computed_and_a_place_that_cannot_be_read_is_an_error(
    factsmith, mirror, arguments, monkeypatch, tmp_path
):
    monkeypatch.setenv("FACTSMITH_HOME", str(tmp_path / "there"))
    there = Store(tmp_path / "there")
    result = factsmith("precompute", "--from", str(tmp_path / "typo"), *arguments())
    assert (result.code, "There are no artifacts at" in result.err) == (2, True)
    assert "runtime.mirror" in factsmith("plan", f"runtime.mirror={mirror}", *arguments()).err

    def fetch(self, name, file):
        raise InputError(f"{self.url} cannot be read.")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "fetch", fetch)
        result = factsmith("precompute", "--from", mirror, *arguments())
        assert (result.code, "cannot be read" in result.err) == (2, True)
        assert there.all_paths() == []

    report = precompute(compose([*arguments("corpus.dynamic_multiplier=21"), f"runtime.mirror={mirror}"]))
    assert states(report) == {
        "model": "fetched", "tokens": "fetched", "keys": "built", "covariance": "built", "factor": "built",
    }  # fmt: skip
