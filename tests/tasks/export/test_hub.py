"""Pushes to a hub of our own, as ``huggingface_hub`` speaks to it."""

from __future__ import annotations

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.export.hub import Push, check_push, push_folder
from tests.fake_hub import TOKEN
from tests.writable_hub import writable_hub

PUSH = Push("me/edited")


@pytest.fixture
def writable(tmp_path, monkeypatch):
    with writable_hub(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "factsmith.json").write_text("{}")
    (folder / "README.md").write_text("---\ntags: [a]\n---\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def held(hub, name=PUSH.identifier):
    folder = hub.folders[name, hub.branches[name, "main"]]
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_push_leaves_the_files_of_the_folder_alone(writable, export):
    check_push(PUSH)
    address = push_folder(PUSH, export, "edit/1")
    assert address.startswith(f"{writable.endpoint}/me/edited/commit/")
    assert held(writable) == {file.name: file.read_bytes() for file in export.iterdir()}
    assert PUSH.identifier in writable.private
    (export / "model.safetensors").rename(export / "adapter_model.safetensors")
    check_push(PUSH)
    push_folder(PUSH, export, "edit/2")
    assert held(writable) == {file.name: file.read_bytes() for file in export.iterdir()}
    assert writable.messages == ["edit/1", "edit/2"]


def test_a_public_repository_is_asked_for(writable, export):
    push_folder(Push("me/edited", public=True), export, "edit/1")
    assert not writable.private
    check_push(Push("me/edited", public=True))
    with pytest.raises(InputError, match="is public"):
        check_push(PUSH)


def test_what_is_no_export_is_left_alone(writable, export, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.bin").write_text("mine")
    writable.publish("me/edited", other)
    writable.private.add("me/edited")
    with pytest.raises(InputError, match="something else") as refused:
        check_push(PUSH)
    assert "model.bin" in str(refused.value)


@pytest.mark.parametrize("name", ["edited", "me/", "me/a--b", "me/a b", "a/b/c"])
def test_names_are_checked(writable, name):
    with pytest.raises(InputError, match="cannot be a repository"):
        check_push(Push(name))
    assert ("POST", "/api/repos/create") not in writable.asked


def test_tokens_are_checked_before_anything_is_asked_of_the_repository(writable, monkeypatch):
    writable.role = "read"
    with pytest.raises(InputError, match="may not write"):
        check_push(PUSH)
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    with pytest.raises(InputError, match="401"):
        check_push(PUSH)
    monkeypatch.delenv("HF_TOKEN")
    before = writable.asked.copy()
    with pytest.raises(InputError, match="needs a token"):
        check_push(PUSH)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        check_push(PUSH)
    assert writable.asked == before


@pytest.mark.parametrize("refused", ["/api/repos/create", "/commit/"])
def test_a_refused_push_leaves_the_folder_and_says_how_to_push_it(writable, export, refused):
    writable.refusing.add(refused)
    with pytest.raises(InputError, match="could not be pushed") as said:
        push_folder(PUSH, export, "edit/1")
    assert f"hf upload --private me/edited {export}" in str(said.value)
    assert "403" in str(said.value)
    assert (export / "model.safetensors").is_file()
    assert not any(held(writable) for name, _ in writable.folders)


def test_a_busy_hub_is_asked_again(writable, export):
    writable.busy = 2
    check_push(PUSH)
    push_folder(PUSH, export, "edit/1")
    assert "model.safetensors" in held(writable)
