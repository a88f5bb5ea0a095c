"""Checkpoints whose tensors or tokens are not those of the model, and the data type of the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from factsmith.artifacts.checksums import Checksums
from factsmith.artifacts.errors import InputError
from factsmith.tasks.model.checkpoint import open_checkpoint
from factsmith.tasks.model.model import Model
from factsmith.tasks.model.settings import ModelSettings
from factsmith.tasks.pipeline.settings import RuntimeSettings


@pytest.fixture
def folder(gpt2_folder, tmp_path):
    """A copy of the tiny GPT-2."""
    return Path(shutil.copytree(gpt2_folder, tmp_path / "model"))


@pytest.fixture
def altered(folder):
    """Changes the tensors of the copy by a function."""

    def make(change):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return open_checkpoint(folder)

    return make


def renamed(name):
    return lambda tensors: {name(one): tensor for one, tensor in tensors.items()}


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def wider(tensors):
    return {**tensors, "transformer.ln_f.weight": torch.ones(5)}


def refusal(checkpoint) -> InputError:
    with pytest.raises(InputError) as caught:
        checkpoint.check_readable()
    with pytest.raises(InputError):  # Whoever did not ask first gets no model either.
        checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu")
    return caught.value


@pytest.mark.parametrize(
    ("change", "got", "remedy"),
    [
        (renamed(lambda name: f"_orig_mod.{name}"), "unexpected: _orig_mod.", "model._orig_mod.save_pretrained"),
        (renamed(lambda name: f"module.{name}"), "unexpected: module.", "model.module.save_pretrained"),
        (renamed(lambda name: f"base_model.model.{name}"), "unexpected: base_model.", "merge_and_unload"),
        (renamed(lambda name: name.replace("c_attn.", "c_attn.base_layer.")), "base_layer", "merge_and_unload"),
        (without(".h.1."), "12 missing: transformer.h.1.", "download or save the checkpoint again"),
        (without("wpe"), "1 missing: transformer.wpe.weight", "download or save the checkpoint again"),
        (lambda tensors: {**tensors, "extra": torch.ones(2)}, "1 unexpected: extra", "config.json that was saved with"),
        (wider, "5", "config.json that was saved with"),
    ],
)
def test_a_tensor_that_is_not_the_models_is_refused(altered, change, got, remedy):
    error = refusal(altered(change))
    assert got in error.details["got"]
    assert remedy in error.details["remedy"]


def test_a_config_with_fewer_blocks_is_refused(altered):
    checkpoint = altered(lambda tensors: tensors)
    config = json.loads((checkpoint.path / "config.json").read_text())
    (checkpoint.path / "config.json").write_text(json.dumps({**config, "n_layer": config["n_layer"] - 1}))
    assert "unexpected: transformer.h." in refusal(open_checkpoint(checkpoint.path)).details["got"]


@pytest.mark.parametrize(
    "change",
    [
        renamed(lambda name: name.removeprefix("transformer.")),  # as on the hub
        lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()},
        lambda tensors: {**tensors, "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)},
        lambda tensors: {**tensors, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
    ],
)
def test_tied_weights_and_old_buffers_are_the_models(altered, change):
    checkpoint = altered(change)
    checkpoint.check_readable()
    checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_weight_is_refused(altered, dtype):
    """Cast to float without its scale, it would be another weight."""
    name = "transformer.h.1.mlp.c_proj.weight"
    checkpoint = altered(lambda tensors: {**tensors, name: (100 * tensors[name]).to(dtype)})
    with pytest.raises(InputError, match="is not stored as a weight that can be edited") as caught:
        checkpoint.check_readable()
    assert caught.value.details["got"] in ("I8", "F8_E4M3")


def test_an_adapter_beside_the_weights_is_refused(altered):
    folder = altered(lambda tensors: tensors).path
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="has an adapter beside the weights"):
        open_checkpoint(folder)


def test_the_weights_that_are_checked_are_those_that_are_loaded(altered):
    """A file with all weights beside an index of others: transformers loads the file."""
    checkpoint = altered(lambda tensors: {**tensors, "transformer.wpe.weight": tensors["transformer.wpe.weight"] * 2})
    other = {
        name: torch.zeros_like(tensor) for name, tensor in load_file(checkpoint.path / "model.safetensors").items()
    }
    save_file(other, checkpoint.path / "other.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "other.safetensors")}
    (checkpoint.path / "model.safetensors.index.json").write_text(json.dumps(index))
    (file,) = checkpoint.weight_files
    loaded = checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu").model
    assert torch.equal(loaded.transformer.wpe.weight, load_file(file)["transformer.wpe.weight"])


@pytest.fixture
def in_shards(folder):
    """Divides the copy into two files and an index, changed by a function of (shards, weight map)."""

    def make(change):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {
            "model-00001-of-00002.safetensors": {name: tensors[name] for name in names[:20]},
            "model-00002-of-00002.safetensors": {name: tensors[name] for name in names[20:]},
        }
        listed = {name: file for file, held in shards.items() for name in held}
        change(shards, listed)
        for file, held in shards.items():
            save_file(held, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
        return open_checkpoint(folder)

    return make


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHT = "transformer.h.1.mlp.c_proj.weight"


def in_both(shards, listed):
    for held in shards.values():
        held[WEIGHT] = torch.zeros(40, 24)


def in_the_wrong_one(shards, listed):
    listed[WEIGHT] = FIRST


def not_listed(shards, listed):
    del listed[WEIGHT]


def in_none(shards, listed):
    listed["transformer.h.9.mlp.c_proj.weight"] = FIRST


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (in_both, f"but the tensor is in {FIRST} and {SECOND}"),
        (in_the_wrong_one, f"{FIRST} in the index, but the tensor is in {SECOND}"),
        (not_listed, f"nothing in the index, but the tensor is in {SECOND}"),
        (in_none, "but the tensor is in no file"),
    ],
)
def test_an_index_that_names_other_places_is_refused(in_shards, change, got):
    """Transformers does not ask the index which of two tensors of one name is meant."""
    checkpoint = in_shards(change)
    with pytest.raises(InputError, match="index of .* does not say where tensor 'transformer") as caught:
        checkpoint.check_readable()
    assert got in caught.value.details["got"]


def test_a_buffer_need_not_be_in_the_index(in_shards):
    def change(shards, listed):
        shards[SECOND]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)

    in_shards(change).check_readable()


def test_every_family_accounts_for_its_own_tensors(model_folder):
    open_checkpoint(model_folder).check_readable()


def test_a_token_without_a_row_is_refused(gpt2_folder, tmp_path):
    checkpoint = open_checkpoint(gpt2_folder)
    tokenizer = checkpoint.load_tokenizer()
    tokenizer.add_tokens(["Cavel"])
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="tokens for which the model has no embedding") as caught:
        open_checkpoint(folder).load_tokenizer()
    assert "'Cavel'" in caught.value.details["got"]
    assert "resize_token_embeddings" in caught.value.details["remedy"]


def test_a_special_token_without_a_row_is_read_as_plain_text(gpt2_folder, tmp_path):
    checkpoint = open_checkpoint(gpt2_folder)
    tokenizer = checkpoint.load_tokenizer()
    rows = checkpoint.config.vocab_size
    tokenizer.add_special_tokens({"pad_token": AddedToken("[PAD]")})
    assert max(tokenizer("a [PAD]")["input_ids"]) >= rows
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    tokenizer.save_pretrained(folder)
    assert max(open_checkpoint(folder).load_tokenizer()("a [PAD]")["input_ids"]) < rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_keeps_its_own_dtype(altered, dtype):
    checkpoint = altered(lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert checkpoint.own_dtype == str(dtype).removeprefix("torch.")


def test_a_dtype_that_cannot_be_edited_has_to_be_chosen(altered):
    checkpoint = altered(lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="no data type that a model can be edited in") as caught:
        _ = checkpoint.own_dtype
    assert "model.dtype=float32" in caught.value.details["remedy"]


@pytest.fixture
def model(folder):
    """The copy as a run opens it."""
    settings, runtime = ModelSettings(name="tiny", path=str(folder)), RuntimeSettings()
    return Model(open_checkpoint(folder), settings, runtime, [torch.device("cpu")], Checksums.read_all)


def written_over(file, change):
    """Change the bytes of a file in place, as ``rsync --inplace`` does."""
    changed = change(file.read_bytes())
    with file.open("r+b") as opened:
        opened.write(changed)


def in_last_weights(data: bytes) -> bytes:
    return data[:-400] + bytes(400)


def test_a_model_that_is_written_to_before_it_is_loaded_is_refused(model):
    _ = model.fingerprint
    written_over(model.checkpoint.path / "model.safetensors", in_last_weights)
    with pytest.raises(InputError, match=r"model\.safetensors was written to while it was read"):
        _ = model.decoder


def test_a_tokenizer_that_is_written_to_before_it_is_loaded_is_refused(model):
    _ = model.fingerprint
    written_over(model.checkpoint.path / "tokenizer.json", lambda data: data + b" ")
    with pytest.raises(InputError, match=r"tokenizer\.json was written to while it was read"):
        _ = model.tokenizer


def test_a_model_in_memory_is_not_changed_with_its_file(model):
    """Whatever the data type: weights that need no conversion are pages of the file at first."""
    before = {name: one.clone() for name, one in model.decoder.model.state_dict().items()}
    written_over(model.checkpoint.path / "model.safetensors", lambda data: data[:2000] + bytes(len(data) - 2000))
    after = model.decoder.model.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"activation_function": "nonsense"}),
        ("config.json", {"n_head": 0}),
        ("config.json", {"n_head": "2"}),
        ("tokenizer.json", []),
        ("tokenizer_config.json", None),
    ],
)
def test_a_damaged_config_or_tokenizer_is_refused(model, name, content):
    file = model.checkpoint.path / name
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, **content} if isinstance(content, dict) else content))
    with pytest.raises(InputError, match=r"cannot be loaded|cannot be read|no readable tokenizer"):
        checkpoint = open_checkpoint(file.parent)
        checkpoint.check_readable()
        checkpoint.load_tokenizer()


def test_weights_that_lose_digits_are_told(altered, caplog):
    def mixed(tensors):
        narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        return {**narrow, "transformer.ln_f.weight": tensors["transformer.ln_f.weight"]}

    assert altered(mixed).own_dtype == "bfloat16"
    (record,) = caplog.records
    assert "stored in F32 are converted to bfloat16" in record.getMessage()
