"""Removal: only unused artifacts are removed, and no reader sees half an artifact."""

from __future__ import annotations

import os
import signal
import time

import pytest

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.removal import alone, dependants, leftovers, remove, unused
from factsmith.artifacts.store import Store
from tests.artifacts.test_store import SERIES, build, flip, spawn, write

DAY = 86_400


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "home")


def made(store: Store, series: Series, *sources: Artifact, **key) -> Artifact:
    def combine(draft: Draft) -> None:
        write(draft)
        draft.read_from(*sources)

    return store.get_or_build(series.member(**key), combine)[0]


@pytest.fixture
def chain(store) -> list[Artifact]:
    """Source, what was read from it, what names that in its recipe, and a bystander."""
    source = build(store, n=1)
    read = made(store, Series("read", 1, {}), source)
    named = made(store, Series("named", 1, {}, {"read": read.digest}))
    return [source, read, named, build(store, n=2)]


def test_dependants_are_found_by_lineage_and_by_recipe(store, chain):
    source, read, named, other = (artifact.place for artifact in chain)
    manifests = store.manifests()
    assert dependants([source], manifests) == sorted([read, named])
    assert dependants([read], manifests) == [named]
    assert dependants([source, read], manifests) == [named]
    assert dependants([named, other], manifests) == []


def test_a_removed_artifact_is_not_found_and_built_again_to_the_same_bytes(store, chain):
    source = chain[0]
    with alone(store):
        remove(store, [source.path])
    assert store.find(SERIES.member(n=1)) is None
    assert [one.key for one in store.members(SERIES)] == [{"n": 2}]
    again, built = store.get_or_build(SERIES.member(n=1), write)
    assert built
    assert again.manifest.content == source.manifest.content
    assert not list((store.root / "trash").iterdir())


def test_a_series_whose_last_artifact_goes_leaves_no_folder(store, chain):
    with alone(store):
        remove(store, [chain[1].path])
    assert not chain[1].path.parent.exists()
    assert chain[0].path.parent.exists()


def test_checksums_of_what_is_gone_are_forgotten(store, chain):
    with alone(store):
        remove(store, [artifact.path for artifact in chain])
    assert store.checksums._run("SELECT * FROM files", [()]) == []


def test_leftovers_are_what_killed_and_damaged_builds_leave(store, tmp_path):
    process = spawn(store, tmp_path, 60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    whole = build(store, n=2)
    flip(build(store, n=3).path / "a.txt")
    build(store, n=3)
    with alone(store):
        found = leftovers(store)
        remove(store, found)
    assert {path.parent.name for path in found} == {"staging", "damaged", "locks"}
    assert leftovers(store) == []
    assert store.verify(whole.path) == []
    assert {artifact.key["n"] for artifact in store.members(SERIES)} == {2, 3}


def test_nothing_is_removed_while_somebody_builds(store, tmp_path):
    process = spawn(store, tmp_path, 60)
    try:
        with pytest.raises(InputError, match="is in use"), alone(store):
            pytest.fail("was alone beside a build")
    finally:
        process.kill()
        process.join()
    with alone(store):
        assert len([path for path in leftovers(store) if path.parent.name == "staging"]) == 1


def test_nobody_builds_while_something_is_removed(store, tmp_path):
    build(store, n=0)
    with alone(store):
        process = spawn_waiting(store, tmp_path)
        time.sleep(1)
        assert not (tmp_path / "started").exists()
    process.join()
    assert store.find(SERIES.member(n=1)) is not None


def spawn_waiting(store: Store, tmp_path):
    import multiprocessing

    from tests.artifacts.test_store import _hold

    target = (store.root, str(tmp_path / "started"), 0.0, "hello")
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=target)
    process.start()
    return process


def test_an_interrupted_deletion_is_finished_later(store, chain, monkeypatch):
    with monkeypatch.context() as patch, alone(store):
        patch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(InputError, match="cannot be written"):
            remove(store, [chain[3].path])
    assert store.find(SERIES.member(n=2)) is None
    with alone(store):
        assert [path.parent.name for path in leftovers(store)].count("trash") == 1
        remove(store, leftovers(store))
    assert leftovers(store) == []


def age(artifact: Artifact, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(artifact.path, (then, then))


def test_what_no_run_used_for_long_is_found(store, chain):
    source, read, named, other = chain
    for artifact, days in ((source, 9), (read, 9), (named, 9), (other, 9)):
        age(artifact, days)
    assert unused(store, 10) == []
    assert unused(store, 8) == sorted(artifact.place for artifact in chain)
    assert store.find(SERIES.member(n=2)) is not None  # a use
    assert other.place not in unused(store, 8)
    age(named, 1)  # what it was made from stays with it
    assert unused(store, 8) == []
    age(named, 9)
    age(read, 1)
    assert unused(store, 8) == [named.place]


def test_a_use_leaves_every_file_as_it_was(store, chain):
    age(chain[0], 9)
    before = {path: path.stat().st_mtime_ns for path in chain[0].path.rglob("*")}
    store.find(SERIES.member(n=1))
    assert {path: path.stat().st_mtime_ns for path in chain[0].path.rglob("*")} == before
    assert store.verify(chain[0].path) == []
