"""The store: artifacts are found by recipe, visible only when complete, and never used when damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from factsmith.artifacts.artifact import Draft
from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Series, canonical_json
from factsmith.artifacts.store import Store

SERIES = Series("things", 1, {"size": 3, "rate": 0.5}, {"source": "abc"})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "home")


def write(draft: Draft, text: str = "hello") -> None:
    (draft.path / "deep").mkdir()
    (draft.path / "a.txt").write_text(text)
    (draft.path / "deep" / "b.bin").write_bytes(b"\x00\x01" * 100)
    draft.summary = {"words": 1}


def build(store: Store, **key):
    return store.get_or_build(SERIES.member(**key), write)[0]


def files_below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


# ------------------------------------------------------------------------------------------------------- recipes


def test_a_digest_follows_everything_in_a_recipe_and_no_order():
    same = Series("things", 1, {"rate": 0.5, "size": 3}, {"source": "abc"})
    assert same.digest == SERIES.digest
    others = [
        Series("other", 1, {"size": 3, "rate": 0.5}, {"source": "abc"}),
        Series("things", 2, {"size": 3, "rate": 0.5}, {"source": "abc"}),
        Series("things", 1, {"size": 4, "rate": 0.5}, {"source": "abc"}),
        Series("things", 1, {"size": 3, "rate": 0.5}, {"source": "abd"}),
    ]
    assert len({series.digest for series in [SERIES, *others]}) == 5
    assert SERIES.member(layer=1).digest != SERIES.member(layer=2).digest
    assert SERIES.member(layer=1).digest == same.member(layer=1).digest


def test_a_digest_is_the_same_in_every_process():
    assert SERIES.member(layer=1).digest == "0ad85ebbd03e1a6f71fe88d315716a3a"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_no_recipe(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})


# ------------------------------------------------------------------------------------------- publishing, finding


def test_built_once_then_found(store):
    first, built = store.get_or_build(SERIES.member(n=1), write)
    again, built_again = store.get_or_build(SERIES.member(n=1), lambda draft: pytest.fail("built twice"))
    assert (built, built_again) == (True, False)
    assert first == again
    assert first.key == {"n": 1}
    assert first.summary == {"words": 1}
    assert files_below(first.path) == {"a.txt", "deep/b.bin", MANIFEST_NAME}


def test_the_manifest_records_where_an_artifact_comes_from(store):
    source = build(store, n=1)

    def combine(draft: Draft) -> None:
        write(draft)
        draft.read_from(source)
        draft.made = {"device": "cpu"}

    made, _ = store.get_or_build(SERIES.member(n=2), combine)
    manifest = made.manifest
    assert manifest.lineage == (source.address,)
    assert manifest.recipe == SERIES.member(n=2).content
    assert manifest.made["device"] == "cpu"
    assert {"factsmith", "torch", "python"} <= set(manifest.made)
    assert manifest.files["a.txt"].bytes == 5
    assert manifest.content == source.manifest.content  # the same bytes, whatever they were made from


def test_a_build_that_fails_leaves_nothing(store):
    def fail(draft: Draft) -> None:
        write(draft)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.get_or_build(SERIES.member(n=1), fail)
    assert store.find(SERIES.member(n=1)) is None
    assert list((store.root / "staging").iterdir()) == []
    assert store.all_paths() == []


def test_nothing_is_seen_before_it_is_whole(store):
    def look(draft: Draft) -> None:
        write(draft)
        assert store.find(SERIES.member(n=1)) is None
        assert store.members(SERIES) == []

    store.get_or_build(SERIES.member(n=1), look)
    assert len(store.members(SERIES)) == 1


def test_members_of_a_series(store):
    built = {build(store, n=number).digest for number in range(3)}
    assert {artifact.digest for artifact in store.members(SERIES)} == built
    assert store.members(Series("things", 2, {})) == []


# --------------------------------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = [flip, truncate, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["a.txt", "deep/b.bin", MANIFEST_NAME])
def test_damage_is_named_set_aside_and_built_again(store, caplog, damage, name):
    artifact = build(store, n=1)
    damage(artifact.path / name)
    problems = store.verify(artifact.path)
    assert len(problems) == 1
    assert name in problems[0]

    again, built = store.get_or_build(SERIES.member(n=1), write)
    assert built
    assert name in caplog.text
    assert again.manifest.content == artifact.manifest.content
    assert store.verify(again.path) == []
    assert len(list((store.root / "damaged").iterdir())) == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_member_is_no_member(store, damage):
    build(store, n=1)
    damage(build(store, n=2).path / "a.txt")
    assert [artifact.key for artifact in store.members(SERIES)] == [{"n": 1}]


def test_a_manifest_of_another_recipe_is_damage(store):
    one, other = build(store, n=1), build(store, n=2)
    (one.path / MANIFEST_NAME).write_bytes((other.path / MANIFEST_NAME).read_bytes())
    content = json.loads((one.path / MANIFEST_NAME).read_text())
    content["recipe"]["key"]["n"] = 1
    (one.path / MANIFEST_NAME).write_text(json.dumps(content))
    assert "has been changed" in store.verify(one.path)[0]


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"checksum": 1}', "\x00", "{" * 50])
def test_a_manifest_that_is_none_is_damage(store, text):
    artifact = build(store, n=1)
    (artifact.path / MANIFEST_NAME).write_text(text)
    assert store.find(SERIES.member(n=1)) is None


def test_a_file_is_read_again_only_after_it_was_touched(store, monkeypatch):
    artifact = build(store, n=1)
    read = []
    monkeypatch.setattr(Checksums, "read", staticmethod(lambda path: read.append(path) or "wrong"))
    assert store.find(SERIES.member(n=1)) is not None
    assert read == []
    os.utime(artifact.path / "a.txt", (1, 1))
    assert store.find(SERIES.member(n=1)) is None
    assert [path.name for path in read] == ["a.txt"]


def test_verify_trusts_no_memory(store):
    artifact = build(store, n=1)
    path = artifact.path / "a.txt"
    stat = path.stat()
    path.write_text("hallo")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "other bytes" in store.verify(artifact.path)[0]


def test_a_broken_memory_costs_time_and_nothing_else(store):
    artifact = build(store, n=1)
    store.checksums.database.write_bytes(b"this is no database" * 100)
    assert store.find(SERIES.member(n=1)) == artifact


# ------------------------------------------------------------------------------------------------ other processes


def _hold(root: Path, started: str, seconds: float, text: str) -> None:
    def slowly(draft: Draft) -> None:
        write(draft, text)
        Path(started).touch()
        time.sleep(seconds)

    Store(root).get_or_build(SERIES.member(n=1), slowly)


def spawn(store: Store, tmp_path: Path, seconds: float, text: str = "hello") -> multiprocessing.Process:
    started = tmp_path / "started"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(store.root, str(started), seconds, text))
    process.start()
    while not started.exists():
        time.sleep(0.01)
    return process


def test_a_second_process_waits_and_finds_what_the_first_has_built(store, tmp_path):
    process = spawn(store, tmp_path, 0.5)
    artifact, built = store.get_or_build(SERIES.member(n=1), lambda draft: pytest.fail("built twice"))
    process.join()
    assert not built
    assert store.verify(artifact.path) == []


def test_a_killed_builder_neither_blocks_nor_shows(store, tmp_path):
    process = spawn(store, tmp_path, 60, text="half")
    assert len(list((store.root / "staging").iterdir())) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert store.find(SERIES.member(n=1)) is None
    artifact, built = store.get_or_build(SERIES.member(n=1), write)
    assert built
    assert (artifact.path / "a.txt").read_text() == "hello"
    assert list((store.root / "staging").iterdir()) == []


# ---------------------------------------------------------------------------------------------------- looking up


def test_addresses_may_be_abbreviated(store):
    one, other = build(store, n=1), build(store, n=2)
    assert store.resolve(one.digest[:10]) == [one.place]
    assert store.resolve(f"things/{one.digest}") == [one.place]
    assert set(store.resolve(SERIES.digest[:8])) == {one.place, other.place}
    for unknown in ("zzz", "other/" + one.digest, ""):
        with pytest.raises(InputError, match="artifacts or series match"):
            store.resolve(unknown)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written") as caught:
        Store(tmp_path / "file" / "home").check_writable()
    assert "FACTSMITH_HOME" in caught.value.details["remedy"]


def test_a_manifest_survives_its_own_spelling(store):
    artifact = build(store, name="Zürich\u2028 ✓")
    assert Manifest.load(artifact.path / MANIFEST_NAME) == artifact.manifest


# ------------------------------------------------------------------------------------------------- several at once


def test_several_are_built_in_order_and_published_side_by_side(store, monkeypatch):
    publish, publishing, seen = Store._publish, threading.Barrier(3), []

    def together(self, draft, seconds):
        publishing.wait(30)  # Broken unless three are published at once.
        publish(self, draft, seconds)

    monkeypatch.setattr(Store, "_publish", together)
    recipes = {name: SERIES.member(name=name) for name in ("c", "a", "b")}
    found, built = store.get_or_build_each(recipes, lambda draft, name: (seen.append(name), write(draft, name)))
    assert (built, seen) == (True, ["c", "a", "b"])
    assert {name: (one.path / "a.txt").read_text() for name, one in found.items()} == {name: name for name in recipes}
    again, built = store.get_or_build_each(recipes, lambda *_: pytest.fail("was built again"))
    assert ([one.path for one in again.values()], built) == ([one.path for one in found.values()], False)
    assert not list((store.root / "staging").iterdir())


def test_of_several_one_that_fails_keeps_those_before_it(store):
    def failing(draft, number):
        write(draft)
        if number == 2:
            raise ZeroDivisionError

    recipes = {number: SERIES.member(number=number) for number in range(4)}
    with pytest.raises(ZeroDivisionError):
        store.get_or_build_each(recipes, failing)
    assert [store.find(recipe) is not None for recipe in recipes.values()] == [True, True, False, False]
    assert not list((store.root / "staging").iterdir())
    _, built = store.get_or_build_each(recipes, lambda draft, _: write(draft))
    assert built


def test_of_several_one_that_cannot_be_published_is_an_error(store, monkeypatch):
    publish = Store._publish

    def full(self, draft, seconds):
        if draft.recipe.key["number"] == 1:
            raise OSError(28, "No space left on device")
        publish(self, draft, seconds)

    monkeypatch.setattr(Store, "_publish", full)
    recipes = {number: SERIES.member(number=number) for number in range(3)}
    with pytest.raises(OSError, match="No space left"):
        store.get_or_build_each(recipes, lambda draft, _: write(draft))
    assert [store.find(recipe) is not None for recipe in recipes.values()] == [True, False, True]
    assert not list((store.root / "staging").iterdir())
