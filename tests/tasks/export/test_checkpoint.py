"""A checkpoint has the files of its base, and a wrong file is found."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from factsmith.artifacts.errors import DamagedArtifactError
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.edit.edit import WeightEdit
from factsmith.tasks.export import weights
from factsmith.tasks.export.weights import save_checkpoint
from factsmith.tasks.model.checkpoint import open_checkpoint
from tests.conftest import load_plain

INDEX = "model.safetensors.index.json"


def opened(folder, dtype="float32"):
    checkpoint = open_checkpoint(folder)
    return checkpoint, checkpoint.load(checkpoint.load_tokenizer(), dtype=dtype, device="cpu")


def saved(folder, out, dtype="float32"):
    out.mkdir()
    checkpoint, decoder = opened(folder, dtype)
    rows, columns = decoder.weight(1).shape
    change = LowRankDelta(torch.ones(rows, 1) / 9, torch.linspace(-1, 1, columns)[:, None])
    with WeightEdit({1: change}).applied(decoder):
        save_checkpoint(checkpoint, decoder, out)
        return {name: tensor.clone() for name, tensor in decoder.model.state_dict().items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_are_those_of_the_base(llama_folder, tmp_path, dtype):
    """Of a base in three shards, in its own data type and in another one."""
    base = tmp_path / "base"
    load_plain(llama_folder).save_pretrained(base, max_shard_size="60KB")
    for file in llama_folder.glob("tokenizer*"):
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").write_text("{{ messages }}")
    names = {file.name for file in base.iterdir()}
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    edited = saved(base, tmp_path / "out", dtype)
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    one, other = (json.loads((folder / INDEX).read_text()) for folder in (base, tmp_path / "out"))
    assert one["weight_map"] == other["weight_map"]
    assert other["metadata"]["total_size"] == one["metadata"]["total_size"] // (1 if dtype == "float32" else 2)
    for file in sorted(one["weight_map"].values()):
        tensors = load_file(tmp_path / "out" / file)
        assert set(tensors) == {name for name, place in one["weight_map"].items() if place == file}
        assert all(torch.equal(tensor, edited[name]) for name, tensor in tensors.items())
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype)
    assert all(torch.equal(tensor, edited[name]) for name, tensor in model.state_dict().items())


def test_every_family_is_written_in_its_own_files(model_folder, tmp_path):
    edited = saved(model_folder, tmp_path / "out")
    found = load_plain(tmp_path / "out").state_dict()
    assert found.keys() == edited.keys()
    assert all(torch.equal(tensor, edited[name]) for name, tensor in found.items())
    one, other = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert len([name for name in one if not torch.equal(one[name], other[name])]) == 1


def test_names_without_the_prefix_and_old_buffers_stay(gpt2_folder, tmp_path):
    """As GPT-2's checkpoint on the hub has them."""
    base = tmp_path / "base"
    base.mkdir()
    for file in gpt2_folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(gpt2_folder / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, base / "model.safetensors")
    saved(base, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in tensors if not torch.equal(tensors[name], written[name])} == {"h.1.mlp.c_proj.weight"}
    assert written.keys() == tensors.keys()


def _flip_a_bit(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.2.ln_1.weight"].view(torch.uint8)[0] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _change_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))


def _change_tokenizer(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "normalizer": {"type": "Lowercase"}}))


@pytest.mark.parametrize(
    ("damage", "named"), [(_flip_a_bit, "ln_1"), (_change_config, "layer_norm_eps"), (_change_tokenizer, "tokenizer")]
)
def test_a_wrong_file_is_found(gpt2_folder, tmp_path, monkeypatch, damage, named):
    compare = weights._compare

    def damaged(base, decoder, folder, *rest):
        damage(folder)
        compare(base, decoder, folder, *rest)

    monkeypatch.setattr(weights, "_compare", damaged)
    with pytest.raises(DamagedArtifactError, match="does not hold") as found:
        saved(gpt2_folder, tmp_path / "out")
    assert named in str(found.value)
