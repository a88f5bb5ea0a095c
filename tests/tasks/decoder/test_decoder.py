"""A model that runs block by block gives what transformers gives."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.batching import length_batches, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import layout_for
from factsmith.tasks.keys.block_keys import NonFiniteKeysError, block_keys
from tests.conftest import load_plain, plain_blocks, plain_projection

LAYERS = (0, 2)


@pytest.fixture
def plain(model_folder):
    return load_plain(model_folder)


def blocks_of(decoder, count: int = 9) -> list[list[int]]:
    lengths = [7, 3, 7, 12, 7, 1, 12, 5, 7][:count]
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in lengths]


def plain_keys(plain, block: list[int], layer: int) -> torch.Tensor:
    """Keys by a hook on a whole, unpadded forward pass."""
    found = []

    def keep(_, inputs) -> None:
        found.append(inputs[0].reshape(len(block), -1).clone())  # Blocks of OPT join the rows.

    handle = plain_projection(plain_blocks(plain)[layer]).register_forward_pre_hook(keep)
    with torch.no_grad():
        plain(input_ids=torch.tensor([block]))
    handle.remove()
    return found[0]


@torch.no_grad()
def test_logits_are_those_of_transformers(decoder, plain):
    for block in blocks_of(decoder):
        tokens = torch.tensor([block])
        hidden = decoder.run(decoder.embed(tokens), 0, decoder.block_count)
        assert torch.equal(decoder.logits(hidden), plain(input_ids=tokens).logits)


@torch.no_grad()
def test_right_padding_changes_nothing(decoder):
    blocks = blocks_of(decoder)
    together = decoder.run(decoder.embed(pad(blocks)), 0, decoder.block_count)
    for block, row in zip(blocks, together, strict=True):
        alone = decoder.run(decoder.embed(torch.tensor([block])), 0, decoder.block_count)
        assert torch.allclose(row[: len(block)], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most_tokens", [20, *(pytest.param(one, marks=pytest.mark.slow) for one in (1, 10_000))])
def test_keys_are_those_of_transformers_whatever_the_batch(decoder, plain, most_tokens):
    blocks = blocks_of(decoder)
    keys = block_keys(decoder, blocks, LAYERS, most_tokens=most_tokens)
    assert set(keys) == set(LAYERS)
    for layer in LAYERS:
        expected = torch.cat([plain_keys(plain, block, layer) for block in blocks])
        assert keys[layer].shape == (sum(map(len, blocks)), decoder.key_width)
        assert torch.allclose(keys[layer], expected, atol=1e-5, rtol=1e-5)


def test_a_layer_gives_the_same_keys_whichever_others_are_asked_for(decoder):
    blocks = blocks_of(decoder)
    alone = block_keys(decoder, blocks, [1], most_tokens=64)[1]
    among = block_keys(decoder, blocks, [0, 1, 3], most_tokens=64)[1]
    assert torch.equal(alone, among)


def test_nothing_above_the_last_edited_projection_runs(decoder):
    ran = []
    handles = [block.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, block in enumerate(decoder.blocks)]
    handles.append(decoder.projection(1).register_forward_hook(lambda *_: ran.append("projection 1")))
    block_keys(decoder, blocks_of(decoder), [0, 1], most_tokens=64)
    for handle in handles:
        handle.remove()
    assert set(ran) == {0}


def test_taps_are_gone_afterwards(decoder):
    block_keys(decoder, blocks_of(decoder), [0], most_tokens=64)
    assert not decoder.projection(0)._forward_pre_hooks


def test_weights_are_seen_as_output_by_input(decoder, plain):
    weight = decoder.weight(1)
    assert weight.shape == (24, 96 if decoder.layout.model_type == "bloom" else 40)
    block = blocks_of(decoder)[3]
    key = plain_keys(plain, block, 1)
    projection = decoder.projection(1)
    bias = projection.bias if projection.bias is not None else 0.0
    assert torch.allclose(projection(key), key @ weight.T + bias, atol=1e-5)


def test_queries_and_values_are_the_modules_that_peft_names(decoder):
    """PEFT has a table of families of its own. It has no entry for Phi-3."""
    constants = pytest.importorskip("peft.utils.constants")
    names = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    found = {name.rpartition(".")[2] for name in decoder.layout.query_value(decoder.blocks[1])}
    assert found == set(names.get(decoder.model.config.model_type, ["qkv_proj"]))


def test_keys_that_are_not_numbers_are_refused(decoder):
    with torch.no_grad():
        decoder.weight(0)[0, 0] = float("nan")
    with pytest.raises(NonFiniteKeysError) as caught:
        block_keys(decoder, blocks_of(decoder), [0, 2], most_tokens=64)
    assert caught.value.layer == 2


def test_an_unknown_family_is_refused_with_the_file_to_add():
    with pytest.raises(InputError, match="cohere") as caught:
        layout_for(CohereConfig(), "somewhere")
    assert "families/cohere.py" in caught.value.details["remedy"]
    assert "gpt2, gpt_neox, gptj, llama, mistral, opt, phi3, qwen2, qwen3" in caught.value.details["expected"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GPT2Config(add_cross_attention=True), "cross-attention"),
        (OPTConfig(do_layer_norm_before=False), "OPT-350m"),
        (OPTConfig(word_embed_proj_dim=512), "embeddings of another width"),
        (BloomConfig(slow_but_exact=True, pretraining_tp=2), "slow_but_exact"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "bidirectional"),
    ],
)
def test_a_variant_that_a_layout_would_get_wrong_is_refused(config, said):
    with pytest.raises(InputError, match=said):
        layout_for(config, "somewhere")


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("mixtral", r"mixture of experts.*num_local_experts=8"),
        ("qwen2_moe", r"mixture of experts.*num_experts=60"),
        ("deepseek_v3", r"mixture of experts.*n_routed_experts=256"),
        ("dbrx", r"mixture of experts.*moe_num_experts=4"),
        ("switch_transformers", "mixture of experts"),
        ("t5", "has an encoder"),
        ("mamba2", "state-space"),
        ("recurrent_gemma", "state-space"),
        ("gemma3", r"reads more than text.*'gemma3_text'"),
        ("qwen2_5_vl", "reads more than text"),
    ],
)
def test_a_kind_of_model_that_has_no_layout_is_refused_for_what_it_is(model_type, said):
    with pytest.raises(InputError) as caught:
        layout_for(AutoConfig.for_model(model_type), "somewhere")
    assert re.search(said, str(caught.value), re.DOTALL)
    assert "families" not in caught.value.details["remedy"]


def test_the_attention_that_runs_is_the_one_that_is_recorded(decoder):
    assert decoder.model.config._attn_implementation == decoder.layout.attention_implementation


SMALL = {
    "vocab_size": 50, "max_position_embeddings": 96, "hidden_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "initializer_range": 0.5,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


def in_memory(config) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layout = layout_for(config, "somewhere")
        model = AutoModelForCausalLM.from_config(config, attn_implementation=layout.attention_implementation)
    return Decoder(model, None, layout)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=8),
        Qwen2Config(**SMALL, **SLIDING),
        Qwen3Config(**SMALL, **SLIDING),
        Gemma2Config(**SMALL, sliding_window=8),
        Gemma3TextConfig(**SMALL, sliding_window=8),
        Phi3Config(**SMALL, sliding_window=8, pad_token_id=0),
    ],
    ids=lambda config: config.model_type,
)
def test_what_fits_a_sliding_window_is_all_that_is_taken(config):
    decoder = in_memory(config)
    assert decoder.context_length == 8
    tokens = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(3))

    def difference(length: int) -> float:
        ours = decoder.logits(decoder.run(decoder.embed(tokens[:, :length]), 0, decoder.block_count))
        return float((ours - decoder.model(input_ids=tokens[:, :length]).logits).abs().max())

    assert difference(8) < 1e-5
    assert difference(9) > 1e-3, "the window no longer matters: the limit could go"


def test_a_window_that_no_block_uses_limits_nothing():
    config = Qwen2Config(**SMALL, **{**SLIDING, "max_window_layers": 4})
    assert layout_for(config, "somewhere").context_length(config) == 96


def test_longrope_is_kept_to_the_lengths_where_padding_is_harmless():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 3, "long_factor": [4.0] * 3}
    config = LlamaConfig(**SMALL, rope_parameters={**rope, "original_max_position_embeddings": 16})
    assert layout_for(config, "somewhere").context_length(config) == 16


def test_a_quantised_checkpoint_is_refused():
    config = LlamaConfig(**SMALL)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(InputError, match="somewhere is quantised"):
        layout_for(config, "somewhere")


@pytest.mark.parametrize("most", [1, 10, 33, 1000])
def test_length_batches_hold_everything_once_and_keep_to_the_limit(most):
    lengths = [5, 1, 9, 9, 2, 30, 5, 5, 7, 1]
    batches = list(length_batches(lengths, most))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert len(batch) == 1 or padded <= most
        assert sum(lengths[index] for index in batch) >= 0.9 * padded
