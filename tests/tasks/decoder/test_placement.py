"""A model whose blocks are stored on another device gives the same bits as the whole model."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoModelForCausalLM

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import TopK, continuations
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.placement import is_offloaded
from factsmith.tasks.decoder.prefix_cache import PrefixCache
from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.edit.batch import applied, compute_edit, merge
from factsmith.tasks.edit.delta import LowRankDelta
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.keys.block_keys import block_keys
from factsmith.tasks.model.checkpoint import open_checkpoint
from factsmith.tasks.preservation.full import FullPreservation
from factsmith.tasks.values.optimiser import optimise_values
from factsmith.tasks.values.settings import ValueSettings
from tests.conftest import load

LAYERS = [0, 2]
CONTEXTS = ["{}", "The town is old. {}"]


def offloaded(decoder: Decoder) -> Decoder:
    """The same model, every parameter on the meta device but while it runs."""
    model = cpu_offload(copy.deepcopy(decoder.model), execution_device=torch.device("cpu"))
    model.hf_device_map = {"": "cpu"}  # as transformers notes it; save_pretrained looks here
    assert all(parameter.is_meta for parameter in model.parameters())
    return Decoder(model, decoder.tokenizer, decoder.layout)


@pytest.fixture
def away(decoder) -> Decoder:
    return offloaded(decoder)


@pytest.fixture
def deltas(decoder) -> dict[int, LowRankDelta]:
    generator = torch.Generator().manual_seed(5)

    def random(size: int) -> torch.Tensor:
        return torch.randn(size, 3, dtype=torch.float64, generator=generator)

    return {layer: LowRankDelta(random(24), random(decoder.key_width)) for layer in LAYERS}


def test_only_passes_that_stay_on_their_device_can_be_recorded(decoder, away, family_folder):
    """PyTorch's allocator does not recover from a recording that fails, so it must not be tried in vain."""
    assert decoder.stays_on_device
    assert not away.stays_on_device
    dynamic = load(family_folder("mistral"))
    assert dynamic.stays_on_device
    dynamic.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert not dynamic.stays_on_device


def requests() -> list[EditRequest]:
    return [
        EditRequest(case_id=1, template="{} speaks", subject="Mara Flousano", target_new="Danish"),
        EditRequest(case_id=2, template="The sport of {} is", subject="Ilo", target_new="ice hockey"),
    ]


def tokens() -> torch.Tensor:
    return torch.randint(3, 400, (3, 9), generator=torch.Generator().manual_seed(1))


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder.run(decoder.embed(tokens()), 0, decoder.block_count))


def test_it_knows_where_it_lies_and_where_it_runs(decoder, away):
    assert is_offloaded(away.model)
    assert not is_offloaded(decoder.model)
    assert away.device == decoder.device == torch.device("cpu")
    assert (away.width, away.vocabulary_size) == (decoder.width, decoder.vocabulary_size)


def test_logits_and_keys_are_those_of_the_whole_model(decoder, away):
    assert torch.equal(logits(away), logits(decoder))
    blocks = [row.tolist() for row in tokens()]
    found, expected = (block_keys(one, blocks, LAYERS, most_tokens=20) for one in (away, decoder))
    for layer in LAYERS:
        assert torch.equal(found[layer], expected[layer])
    assert all(parameter.is_meta for parameter in away.model.parameters())


def test_likelihoods_are_those_of_the_whole_model(decoder, away):
    prompts = [encode_prompt(decoder.tokenizer, "Mara speaks", target=target) for target in ("Danish", "ice hockey")]
    found, expected = (continuation_likelihoods(one, prompts, most_tokens=64) for one in (away, decoder))
    assert found == expected


def test_texts_are_those_of_the_whole_model(decoder, away):
    prompts = [[5, 7, 90], [11], [44, 300, 8, 120, 6]]
    for top_k in (None, TopK(5, 0)):
        found, expected = (
            continuations(one, prompts, [9, 20, 20], most_tokens=64, top_k=top_k) for one in (away, decoder)
        )
        assert found == expected


def test_value_vectors_are_those_of_the_whole_model_and_no_weight_stays(decoder, away):
    settings = ValueSettings(steps=5, learning_rate=0.2)
    found, expected = (optimise_values(one, requests(), CONTEXTS, 1, settings, memory=2**24) for one in (away, decoder))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.value, other.value)
        assert one.loss == other.loss
        assert not torch.equal(one.value, one.start)
    assert all(parameter.is_meta for parameter in away.model.parameters())


def test_a_graph_holds_no_weights_of_blocks_that_are_away(decoder, away, monkeypatch):
    held = []
    hook = away.projection(2)._hf_hook
    before = hook.pre_forward

    def watched(module, *args, **kwargs):
        # A GPU would get a copy of the weight; so does this.
        hook.weights_map = {name: value.clone() for name, value in weights.items()}
        held.append(weakref.ref(hook.weights_map["weight"]))
        return before(module, *args, **kwargs)

    weights = {name: hook.weights_map[name] for name, _ in away.projection(2).named_parameters()}
    monkeypatch.setattr(hook, "pre_forward", watched)
    hidden = decoder.embed(tokens()).requires_grad_()
    out = away.run(hidden, 0, away.block_count)
    hook.weights_map = weights
    gc.collect()
    assert [one() for one in held] == [None]
    (found,) = torch.autograd.grad(out.square().sum(), hidden)
    whole = decoder.run(hidden, 0, decoder.block_count)
    (expected,) = torch.autograd.grad(whole.square().sum(), hidden)
    assert len(held) == 2
    assert torch.equal(found, expected)
    assert all(parameter.is_meta for parameter in away.model.parameters())


def test_an_edit_is_written_and_taken_back_exactly(decoder, away, deltas):
    before = logits(away)
    kept = {layer: away.weight(layer).clone() for layer in LAYERS}
    with applied(away, deltas), applied(decoder, deltas):
        edited = logits(away)
        assert torch.equal(edited, logits(decoder))
        assert not torch.equal(edited, before)
    assert torch.equal(logits(away), before)
    for layer in LAYERS:
        assert torch.equal(away.weight(layer), kept[layer])


def test_edits_are_computed_as_on_the_whole_model(decoder, away):
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(200, decoder.key_width, dtype=torch.float64, generator=generator)
    operator = FullPreservation.from_covariance(keys.T @ keys / len(keys), weight=2.0)
    values = torch.randn(2, decoder.width, generator=generator)
    found, expected = (
        compute_edit(one, requests(), values, CONTEXTS, [0, 1], lambda _: operator, slack=1.0, most_tokens=64)
        for one in (away, decoder)
    )
    for layer in (0, 1):
        assert torch.equal(found[layer].dense(), expected[layer].dense())


def test_an_edited_model_is_saved_as_it_is(decoder, away, deltas, tmp_path):
    for one in (away, decoder):
        merge(one, deltas)
        logits(one)
    for one, name in ((away, "away"), (decoder, "whole")):
        one.save(tmp_path / name)
    found, expected = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("away", "whole")
    )
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_too(model_folder, dtype, deltas):
    decoder = load(model_folder, dtype)
    away = offloaded(decoder)
    before = logits(away)
    assert torch.equal(before, logits(decoder))
    with applied(away, deltas), applied(decoder, deltas):
        assert torch.equal(logits(away), logits(decoder))
        assert away.weight(0).dtype == getattr(torch, dtype)
    assert torch.equal(logits(away), before)
    vectors = optimise_values(away, requests(), CONTEXTS, 1, ValueSettings(steps=3), memory=2**24)
    others = optimise_values(decoder, requests(), CONTEXTS, 1, ValueSettings(steps=3), memory=2**24)
    assert all(torch.equal(one.value, other.value) for one, other in zip(vectors, others, strict=True))


# ------------------------------------------------------------------------------------------- where blocks go


def placed(folder, *, gpu: int | None = None, cpu: int | None = None, device: str = "cpu", dtype: str = "float32"):
    checkpoint = open_checkpoint(folder)
    return checkpoint.device_map(dtype=dtype, device=torch.device(device), gpu_memory_mb=gpu, cpu_memory_mb=cpu)


def test_a_model_that_fits_is_not_divided(model_folder):
    assert placed(model_folder) == {"": "cpu"}
    checkpoint = open_checkpoint(model_folder)
    whole = checkpoint.load(checkpoint.load_tokenizer(), dtype="float32", device="cpu", device_map={"": "cpu"})
    assert torch.equal(logits(whole), logits(load(model_folder)))


@pytest.fixture
def large(tmp_path):
    """The folder of a config of 400 MB of weights in 8 blocks; it has no weights, and needs none."""
    from transformers import GPT2Config

    config = GPT2Config(n_embd=1024, n_layer=8, n_head=8, vocab_size=1000, n_positions=64)
    config.save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def gpus(monkeypatch, count: int, size_mb: int) -> None:
    free = {**dict.fromkeys(range(count), size_mb * 2**20), "cpu": 2**40}
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: dict(free))


def test_gpus_come_before_the_cpu_and_blocks_stay_whole(monkeypatch, large):
    gpus(monkeypatch, 1, 10_000)
    found = placed(large, device="cuda", gpu=250)
    blocks = [found[f"transformer.h.{index}"] for index in range(8)]
    assert blocks == sorted(blocks, key=str)
    assert {*blocks} == {0, "cpu"}
    assert found["transformer.wte"] == found["transformer.wpe"] == 0
    assert placed(large, device="cuda", gpu=10_000) == {"": 0}
    assert placed(large, device="cpu", gpu=10_000) == {"": "cpu"}


def test_a_model_that_fits_nowhere_is_refused(monkeypatch, large):
    with pytest.raises(InputError, match="does not fit") as caught:
        placed(large, cpu=100)
    assert "CPU 100 MB" in caught.value.details["expected"]
    assert "389 MB of weights" in caught.value.details["got"]
    assert "runtime.cpu_memory_mb" in caught.value.details["remedy"]
    assert placed(large, cpu=300, dtype="bfloat16") == {"": "cpu"}
    gpus(monkeypatch, 2, 10_000)
    with pytest.raises(InputError) as caught:
        placed(large, device="cuda", gpu=60, cpu=80)
    assert "GPU 0 60 MB, GPU 1 60 MB, CPU 80 MB" in caught.value.details["expected"]


def test_one_gpu_may_be_named(monkeypatch, large):
    gpus(monkeypatch, 3, 10_000)
    assert placed(large, device="cuda:1") == {"": 1}


def test_rows_of_a_prefix_are_chosen_where_the_prefix_lies():
    """An index on one device chooses among what lies on another, as between two GPUs."""
    states = torch.zeros(4, 2, 5, 3, device="meta")
    chosen = PrefixCache({0: (states, states)}).select(torch.tensor([2, 0]), 4)
    assert chosen._prefix[0][0].shape == (2, 2, 4, 3)
    assert chosen._prefix[0][0].is_meta
