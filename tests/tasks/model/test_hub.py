"""Models on the hub: which files of which commit are fetched, and errors."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.model.checkpoint import open_checkpoint, open_model
from factsmith.tasks.model.hub import retry, snapshot
from factsmith.tasks.model.hub.repository import Repository, is_identifier
from tests.fake_hub import TOKEN

NAME = "somebody/tiny-gpt2"


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refusal(name: str = NAME, revision: str | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        _ = open_model(name, revision).weight_files
    return caught.value


def split(folder: Path, into: Path) -> Path:
    """The checkpoint with its weights in several files."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(folder, into)
    (into / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(into, max_shard_size="40KB")
    assert len(list(into.glob("*.safetensors"))) > 1
    return into


def test_what_is_small_comes_first_and_the_weights_when_they_are_read(hub, gpt2_folder):
    commit = hub.publish(NAME, gpt2_folder)
    checkpoint = open_model(NAME)
    checkpoint.check_readable()
    assert checkpoint.load_tokenizer()("a")["input_ids"]
    assert checkpoint.hub.address == f"{NAME}@{commit}"
    assert {"config.json", "tokenizer.json"} <= hub.fetched()
    assert "model.safetensors" not in hub.fetched()
    (file,) = checkpoint.weight_files
    assert file.read_bytes() == (gpt2_folder / "model.safetensors").read_bytes()
    assert [one.read_bytes() for one in checkpoint.tokenizer_files] == [
        one.read_bytes() for one in open_checkpoint(gpt2_folder).tokenizer_files
    ]


def test_weights_in_several_files(hub, gpt2_folder, tmp_path):
    hub.publish(NAME, split(gpt2_folder, tmp_path / "split"))
    checkpoint = open_model(NAME)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert len(checkpoint.weight_files) > 1
    model = checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu").model
    plain = open_checkpoint(gpt2_folder)
    other = plain.load(plain.load_tokenizer(), dtype="float32", device="cpu").model
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_revision_is_the_commit_it_names(hub, gpt2_folder, tmp_path):
    old = hub.publish(NAME, gpt2_folder)
    changed = Path(shutil.copytree(gpt2_folder, tmp_path / "changed"))
    (changed / "config.json").write_text(json.dumps({**json.loads((changed / "config.json").read_text()), "n_head": 4}))
    new = hub.publish(NAME, changed, branch="four-heads")
    assert old != new
    for revision, commit, heads in ((None, old, 2), ("main", old, 2), ("four-heads", new, 4), (new, new, 4)):
        checkpoint = open_model(NAME, revision)
        assert checkpoint.hub.snapshot.commit == commit
        assert checkpoint.config.n_head == heads


def test_nothing_is_fetched_twice(hub, gpt2_folder):
    hub.publish(NAME, gpt2_folder)
    _ = open_model(NAME).weight_files
    hub.asked.clear()
    _ = open_model(NAME).weight_files
    assert not hub.fetched()
    assert not [path for method, path in hub.asked if method == "HEAD"]


def test_the_cache_is_enough_offline(tmp_path, hub, gpt2_folder, offline):
    commit = hub.publish(NAME, gpt2_folder)
    _ = open_model(NAME).weight_files
    hub.folders.clear()
    hub.asked.clear()
    offline()
    for revision in (None, commit):
        checkpoint = open_model(NAME, revision)
        assert checkpoint.hub.snapshot.commit == commit
        assert checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu").block_count == 4
    assert not hub.asked


def test_a_commit_that_is_cached_asks_nobody(hub, gpt2_folder):
    commit = hub.publish(NAME, gpt2_folder)
    _ = open_model(NAME).weight_files
    hub.asked.clear()
    _ = open_model(NAME, commit).weight_files
    assert not hub.asked


def test_what_is_not_cached_cannot_be_had_offline(hub, gpt2_folder, offline):
    hub.publish(NAME, gpt2_folder)
    open_model(NAME)  # config and tokenizer only
    offline()
    for error in (refusal("somebody/else"), refusal()):
        assert "nor in the cache" in error.what
        assert "HF_HUB_OFFLINE" in error.details["remedy"]
        assert "hf download somebody/" in error.details["remedy"]


def test_pickled_weights_are_refused_before_they_move(hub, gpt2_folder, tmp_path):
    folder = Path(shutil.copytree(gpt2_folder, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.publish(NAME, folder)
    with pytest.raises(InputError, match="no safetensors") as caught:
        open_model(NAME)
    assert "pytorch_model.bin" in caught.value.details["got"]
    assert "pytorch_model.bin" not in hub.fetched()


def test_an_index_may_name_nothing_but_safetensors_beside_it(gpt2_folder, tmp_path):
    folder = Path(shutil.copytree(gpt2_folder, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    for name in ("../model.safetensors", "pytorch_model.bin"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match="never loaded"):
            _ = open_checkpoint(folder).weight_files


def test_a_repository_that_is_not_there(hub, gpt2_folder):
    hub.publish(NAME, gpt2_folder)
    error = refusal("somebody/tiny-gtp2")
    assert "no local folder has that name" in error.what
    assert "spelling of model.path" in error.details["remedy"]
    assert sum(hub.asked.values()) == 1  # a clear no is not asked again


def test_a_name_that_the_hub_does_not_allow(hub):
    assert "spelling of model.path" in refusal("somebody/tiny--gpt2").details["remedy"]
    assert not hub.asked


def test_a_revision_that_is_not_there(hub, gpt2_folder):
    hub.publish(NAME, gpt2_folder)
    for revision in ("v7", "0" * 40):
        error = refusal(NAME, revision)
        assert "no such revision" in error.what
        assert error.details["got"] == revision
        assert "model.revision" in error.details["remedy"]


@pytest.mark.parametrize(("kept", "remedy"), [("private", "hf auth login"), ("gated", "accept its licence")])
def test_a_repository_that_one_must_be_let_into(hub, gpt2_folder, monkeypatch, kept, remedy):
    hub.publish(NAME, gpt2_folder)
    getattr(hub, kept).add(NAME)
    assert remedy in refusal().details["remedy"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_model(NAME).weight_files


def test_a_busy_hub_is_asked_again(hub, gpt2_folder, caplog):
    hub.publish(NAME, gpt2_folder)
    hub.busy = 2
    with caplog.at_level(logging.WARNING, logger="factsmith"):
        assert open_model(NAME).weight_files
    said = [record.getMessage() for record in caplog.records if record.name.startswith("factsmith")]
    assert len(said) == 2
    assert all("503" in line and "asking again" in line for line in said)


def test_a_hub_that_does_not_answer(hub, gpt2_folder, offline):
    hub.publish(NAME, gpt2_folder)
    hub.busy = 10**6
    assert "503" in refusal().details["got"]
    assert sum(hub.asked.values()) == 1 + len(retry.WAITS)


def test_a_hub_that_is_not_there(hub, gpt2_folder, monkeypatch, offline):
    from huggingface_hub import constants

    commit = hub.publish(NAME, gpt2_folder)
    _ = open_model(NAME).weight_files
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refusal()
    assert "does not answer" in error.what
    assert "HF_HUB_OFFLINE=1" in error.details["remedy"]
    assert f"hf download {NAME} --local-dir DIR" in error.details["remedy"]
    offline()
    assert open_model(NAME).hub.snapshot.commit == commit


def test_weights_that_do_not_fit_the_disk_are_not_begun(hub, gpt2_folder, monkeypatch):
    hub.publish(NAME, gpt2_folder)
    checkpoint = open_model(NAME)
    monkeypatch.setattr(snapshot, "_free", lambda: 1000)
    with pytest.raises(InputError, match="does not fit the disk") as caught:
        _ = checkpoint.weight_files
    assert "HF_HOME" in caught.value.details["remedy"]
    assert "model.safetensors" not in hub.fetched()


def test_a_folder_comes_before_the_hub_and_has_no_revision(hub, gpt2_folder, tmp_path, monkeypatch):
    shutil.copytree(gpt2_folder, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert open_model(NAME).hub is None
    assert not hub.asked
    with pytest.raises(InputError, match="has no revisions"):
        open_model(NAME, "main")


def test_datasets_are_spoken_of_as_such(hub):
    repository = Repository("dataset", "somebody/text", "v1", "corpus.repository")
    with pytest.raises(InputError) as caught:
        snapshot.resolve(repository)
    assert "dataset somebody/text" in caught.value.what
    assert "corpus.repository" in caught.value.details["remedy"]
    assert repository.download == "`hf download somebody/text --repo-type dataset --revision v1 --local-dir DIR`"
    assert hub.asked["GET", "/api/datasets/somebody/text/revision/v1"] == 1


def test_errors_of_our_own_are_not_the_hub_s():
    with pytest.raises(ZeroDivisionError):
        retry.with_retries(Repository("model", NAME, None, "model.path"), lambda: 1 // 0)


def test_names_of_repositories():
    assert is_identifier("openai-community/gpt2-xl")
    for name in ("gpt2", "/a/b", "./a/b", "a/b/c", "~/model", "../x", "a/.b", "models/"):
        assert not is_identifier(name)
