"""Pushing to and pulling from a folder: what goes along, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from factsmith.artifacts.manifest import MANIFEST_NAME, Manifest
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.remote.location import Location
from factsmith.artifacts.remote.messages import plain
from factsmith.artifacts.remote.mirror import Mirror
from factsmith.artifacts.remote.transfer import Lookup
from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.progress import progress
from tests.artifacts.remote.conftest import COVARIANCE, FACTOR, KEYS, MODEL, TOKENS
from tests.runs import contents


def kinds(store: Store) -> Counter[str]:
    return Counter(path.parent.parent.name for path in store.all_paths())


def of(document: dict) -> Counter[tuple[str, str]]:
    return Counter((one["address"].partition("/")[0], one["state"]) for one in document["artifacts"])


def test_what_was_pushed_is_pulled_with_its_lineage_and_without_keys(moved, store, other, tmp_path):
    url = tmp_path / "mirror"
    pushed = moved(store, "push", "factor", url)
    assert of(pushed) == {
        (kind, "moved"): n for kind, n in [("model", 1), ("tokens", 1), ("covariance", 2), ("factor", 2)]
    }
    assert pushed["left_out"] == sorted(KEYS.member(layer=layer).address for layer in (0, 1))
    assert pushed["files"] == 12
    assert moved(other, "pull", FACTOR.digest[:8], url)["files"] == 12
    assert kinds(other) == {"model": 1, "tokens": 1, "covariance": 2, "factor": 2}
    assert contents(other) == {name: c for name, c in contents(store).items() if not name.startswith("keys/")}
    for path in other.all_paths():  # a copy keeps its manifest, and with it when and how it was made
        assert (path / MANIFEST_NAME).read_bytes() == (
            store.root / path.relative_to(other.root) / MANIFEST_NAME
        ).read_bytes()
    # What was left out is still known, so the second machine can hand everything on to a third.
    third = tmp_path / "third"
    assert of(moved(other, "push", "covariance", third)) == {
        (kind, "moved"): n for kind, n in [("model", 1), ("tokens", 1), ("covariance", 2)]
    }


def test_nothing_is_sent_again_or_overwritten(moved, store, other, tmp_path):
    url = tmp_path / "mirror"
    moved(store, "push", "covariance", url)
    before = {file: file.stat().st_mtime_ns for file in url.rglob("*") if file.is_file()}
    again = moved(store, "push", "covariance", url)
    assert (again["files"], {state for _, state in of(again)}) == (0, {"there"})
    # Another machine has made the same artifact, with other bytes.
    other.get_or_build(COVARIANCE.member(layer=0), lambda draft: (draft.path / "b.txt").write_text("mine"))
    assert of(moved(other, "push", "covariance", url)) == {("covariance", "there, other bytes"): 1}
    assert {file: file.stat().st_mtime_ns for file in url.rglob("*") if file.is_file()} == before
    mine = contents(other)
    assert of(moved(other, "pull", "covariance", url))["covariance", "there, other bytes"] == 1
    assert mine.items() <= contents(other).items()


def test_keys_go_along_on_request_or_if_a_factor_was_made_from_them(moved, store, tmp_path):
    assert of(moved(store, "push", "factor", tmp_path / "a", "--with-keys"))["keys", "moved"] == 2
    keys = store.get(KEYS.member(layer=1))
    thin = Series("factor", 1, {"low": "rank"}, {"keys": KEYS.digest}).member(layer=1)

    def write(draft):
        (draft.path / "b.txt").write_text("thin")
        draft.read_from(keys)

    store.get_or_build(thin, write)
    pushed = moved(store, "push", thin.digest[:12], tmp_path / "b", "--without", "tokens")
    assert of(pushed) == {("model", "moved"): 1, ("keys", "moved"): 1, ("factor", "moved"): 1}
    assert pushed["left_out"] == [TOKENS.address]


def test_a_dry_run_writes_nothing(moved, store, other, tmp_path):
    url = tmp_path / "mirror"
    assert moved(store, "push", "factor", url, "--dry-run")["files"] == 12
    assert not url.exists()
    moved(store, "push", "factor", url)
    assert moved(other, "pull", "factor", url, "--dry-run")["files"] == 12
    assert other.all_paths() == []


def test_files_of_another_machine_are_not_mixed_with_ours(moved, store, other, tmp_path, monkeypatch):
    """A push of other bytes was stopped after its first files. They have the size of ours."""
    url = tmp_path / "mirror"
    recipe = TOKENS

    def write(draft):
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "a.bin").write_bytes(b"TOKENS" * 1000)
        (draft.path / "b.txt").write_text("TOKENS")

    other.get_or_build(recipe, write)
    send = Location.send

    def push_until(store: Store, last: str) -> None:
        """Push, and be stopped when the file ``last`` is to be written."""

        def stop(self, source, name):
            if name.endswith(last):
                raise KeyboardInterrupt
            send(self, source, name)

        with monkeypatch.context() as patch:
            patch.setattr(Location, "send", stop)
            with pytest.raises(AssertionError):
                moved(store, "push", "tokens", url)

    push_until(other, MANIFEST_NAME)
    push_until(store, "b.txt")  # ours is stopped too, before it has replaced all of theirs
    assert not Mirror(Location.open(str(url))).places()  # nobody takes it for whole
    moved(store, "push", "tokens", url)
    third = Store(tmp_path / "third")
    moved(third, "pull", "tokens", url)
    assert contents(third)[TOKENS.address] == contents(store)[TOKENS.address]
    files = {file.name for file in (url / "artifacts" / "tokens").rglob("*") if file.is_file()}
    assert files == {"a.bin", "b.txt", MANIFEST_NAME}


def test_a_damaged_file_is_named_and_not_published(cli, moved, store, other, tmp_path):
    url = tmp_path / "mirror"
    moved(store, "push", "factor", url)
    (file,) = url.glob(f"artifacts/factor/*/{FACTOR.member(layer=1).digest}/deep/a.bin")
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    code, _, err = cli(other, "store", "pull", "factor", url)
    assert code == 2
    assert str(file) in err
    assert "other bytes" in err
    assert kinds(other)["factor"] <= 1
    assert not other.at(other.place(FACTOR.member(layer=1)))
    assert not list((other.root / "staging").iterdir())


def rewritten(manifest: Manifest, **changes) -> bytes:
    """A manifest that somebody has made by hand, with the right checksum of its own."""
    return manifest.model_copy(update=changes).dump()


@pytest.mark.parametrize("name", ["../../../evil", "/evil", "a/../../evil", "..", "manifest.json", "a\\..\\b", ""])
def test_a_manifest_that_leaves_its_folder_is_refused(cli, moved, store, other, tmp_path, name):
    url = tmp_path / "mirror"
    moved(store, "push", "model", url)
    (file,) = url.glob(f"artifacts/model/*/*/{MANIFEST_NAME}")
    manifest = Manifest.load(file)
    file.write_bytes(rewritten(manifest, files={name: next(iter(manifest.files.values()))}))
    code, _, err = cli(other, "store", "pull", "model", url)
    assert code == 2
    assert "outside of the artifact" in err
    assert other.all_paths() == []


def test_a_manifest_of_something_else_is_refused(cli, moved, store, other, tmp_path):
    url = tmp_path / "mirror"
    moved(store, "push", "factor", url)
    first, second = (
        next(url.glob(f"artifacts/factor/*/{FACTOR.member(layer=n).digest}/{MANIFEST_NAME}")) for n in (0, 1)
    )
    first.write_bytes(second.read_bytes())
    assert "another artifact" in cli(other, "store", "pull", "factor", url)[2]
    first.write_text("{}")
    assert "not a manifest" in cli(other, "store", "pull", "factor", url)[2]
    lie = json.loads(json.dumps(Manifest.load(second).model_dump(mode="json")))
    first.write_bytes(rewritten(Manifest.model_validate({**lie, "series": MODEL.series.digest})))
    assert cli(other, "store", "pull", "factor", url)[0] == 2
    assert other.all_paths() == []


def test_what_cannot_be_meant_is_refused(cli, moved, store, other, tmp_path):
    url = tmp_path / "mirror"
    moved(store, "push", "covariance", url)
    for arguments, said in [
        (("push", "covariances", url), "covariance"),
        (("push", "covariance", "nosuch://place"), "nosuch"),
        (("push", "covariance", "gs://bucket/stats"), "pip install 'factsmith[gcs]'"),
        (("push", "covariance", f"https://me:{'hush' * 3}@host/x"), "credentials"),
        (("push", "covariance", url, "--without", "tokns"), "did you mean 'tokens'"),
        (("pull", "factor", url), "the kinds covariance, model, tokens"),
        (("pull", "covariance", tmp_path / "empty"), "no artifacts at all"),
    ]:
        code, out, err = cli(store, "store", *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err
        assert "hush" not in err
    assert cli(other, "store", "push", "covariance", url)[0] == 2


def test_a_store_looks_elsewhere_once_for_each_artifact(moved, store, other, tmp_path, monkeypatch):
    moved(store, "push", "factor", tmp_path / "mirror")
    asked: list[str] = []
    read = Location.read
    monkeypatch.setattr(Location, "read", lambda self, name: asked.append(name) or read(self, name))
    other.source = Lookup(other, Mirror(Location.open(str(tmp_path / "mirror"))), {"covariance", "keys"}, progress)
    built = []
    found, was_built = other.get_or_build(COVARIANCE.member(layer=0), built.append)
    assert not was_built
    assert found.manifest.content == store.get(COVARIANCE.member(layer=0)).manifest.content
    assert other.brought == {COVARIANCE.address, COVARIANCE.member(layer=0).address}
    _, was_built = other.get_or_build(KEYS.member(layer=0), lambda draft: (draft.path / "k").write_text("k"))
    assert was_built
    other.find(KEYS.member(layer=9))
    other.find(KEYS.member(layer=9))
    other.find(FACTOR.member(layer=0))  # of no kind that is looked for
    assert len(asked) == 3


def test_messages_hold_no_secrets(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hf_123456789")
    text = plain("GET https://me:pass@host/a?X-Amz-Signature=abc failed for hf_123456789")
    assert text == "GET https://host/a failed for ***"


def test_a_relative_path_and_a_url_of_the_same_folder_are_alike(moved, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved(store, "push", "model", "mirror")
    assert Path("mirror/artifacts/model").is_dir()
    assert of(moved(store, "push", "model", f"file://{tmp_path}/mirror")) == {("model", "there"): 1}
