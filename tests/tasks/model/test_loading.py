"""A model is loaded bit for bit as transformers loads it, into memory of its own, and no more of it than is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run
from factsmith.tasks.model import loading
from factsmith.tasks.model.checkpoint import open_checkpoint
from tests.conftest import FAMILIES, load, load_plain
from tests.runs import artifacts


@pytest.fixture(params=FAMILIES)
def folder(request, family_folder) -> Path:
    """Each of the tiny models, whatever is slow elsewhere."""
    name = request.param
    return request.getfixturevalue(f"{name}_folder") if FAMILIES[name] is None else family_folder(name)


@pytest.fixture
def bytes_read(monkeypatch) -> list[int]:
    """The bytes of every tensor that is read, as they are."""
    seen: list[int] = []
    read = loading._FileTensor.__getitem__
    monkeypatch.setattr(loading._FileTensor, "__getitem__", lambda self, key: seen.append(self.size) or read(self, key))
    return seen


def sharded(folder: Path, target: Path, dtype: torch.dtype) -> Path:
    """A copy of a model in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    shutil.copytree(folder, target, ignore=lambda *_: ["model.safetensors"])
    model.save_pretrained(target, max_shard_size="20KB")
    assert len(list(target.glob("*.safetensors"))) > 2
    return target


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.float32, "float32"),
        (torch.bfloat16, "bfloat16"),
        pytest.param(torch.bfloat16, "float32", marks=pytest.mark.slow),
        pytest.param(torch.float32, "float16", marks=pytest.mark.slow),
    ],
)
def test_weights_and_buffers_are_those_of_transformers(folder, tmp_path, stored, dtype):
    path = sharded(folder, tmp_path / "model", stored)
    found, expected = load(path, dtype).model, load_plain(path, dtype)
    assert found.config.tie_word_embeddings == expected.config.tie_word_embeddings
    for part in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(found, part)()), dict(getattr(expected, part)())
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])
            assert tensor.stride() == theirs[name].stride()
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()


def test_memory_is_aligned_and_no_page_of_the_file(folder, tmp_path):
    path = Path(shutil.copytree(folder, tmp_path / "model"))
    model = load(path).model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    file = path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() % 64 == 0
        assert torch.equal(parameter, before[name])


def test_a_file_that_ends_early_is_refused(gpt2_folder, tmp_path, monkeypatch):
    path = Path(shutil.copytree(gpt2_folder, tmp_path / "model"))
    checkpoint = open_checkpoint(path)
    found = loading._file_tensors

    def shortened(file):
        tensors = found(file)
        file.write_bytes(file.read_bytes()[:-100])
        return tensors

    monkeypatch.setattr(loading, "_file_tensors", shortened)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu")
    assert "ends before its last tensor" in caught.value.details["got"]


def test_the_first_blocks_compute_what_they_do_in_the_whole_model(folder, bytes_read):
    checkpoint = open_checkpoint(folder)
    tokenizer = checkpoint.load_tokenizer()
    whole = checkpoint.load(tokenizer, dtype="float32", device="cpu")
    all_bytes = sum(bytes_read)
    bytes_read.clear()
    part = checkpoint.load(tokenizer, dtype="float32", device="cpu", blocks=2)
    block = sum(parameter.nbytes for parameter in whole.blocks[0].parameters())
    output = whole.model.get_output_embeddings()
    tied = output.weight is whole.model.get_input_embeddings().weight
    assert sum(bytes_read) == all_bytes - 2 * block - (0 if tied else sum(one.nbytes for one in output.parameters()))

    tokens = torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(part.run(part.embed(tokens), 0, 2), whole.run(whole.embed(tokens), 0, 2))
    assert (part.block_count, part.width, part.vocabulary_size) == (2, whole.width, whole.vocabulary_size)
    assert torch.equal(part.weight(1), whole.weight(1))


def test_what_was_not_loaded_does_not_run(gpt2_folder, tmp_path):
    checkpoint = open_checkpoint(gpt2_folder)
    part = checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu", blocks=2)
    hidden = part.embed(torch.tensor([[5, 6]]))
    for use in (lambda: part.run(hidden, 0, 3), lambda: part.logits(hidden), lambda: part.save(tmp_path / "out")):
        with pytest.raises(RuntimeError, match="only the first 2 blocks"):
            use()


def test_all_tensors_are_checked_even_if_not_all_are_loaded(gpt2_folder, tmp_path):
    path = sharded(gpt2_folder, tmp_path / "model", torch.float32)
    last = max(path.glob("*.safetensors"))
    last.unlink()
    checkpoint = open_checkpoint(path)
    with pytest.raises(InputError, match="no readable weights"):
        checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu", blocks=1)


def test_precompute_reads_no_block_above_the_edited_ones(plain_flows, gpt2_folder, arguments, home, store, bytes_read):
    given = arguments("method.layers=[0,1]", "dataset.batches=1")
    precompute(compose(given))
    read = sum(bytes_read)
    found = {one.key["layer"]: one.manifest.content for one in artifacts(store, "covariance")}
    bytes_read.clear()
    shutil.rmtree(home / "artifacts")
    run(compose(given))
    whole = sum(bytes_read)
    unread = [parameter.nbytes for block in load(gpt2_folder).blocks[2:] for parameter in block.parameters()]
    assert read == whole - sum(unread)
    assert {one.key["layer"]: one.manifest.content for one in artifacts(store, "covariance")} == found
