"""An adapter makes of a model what the edit makes of it, as PEFT loads it."""

from __future__ import annotations

import json
import re

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.edit.delta import DenseDelta, LowRankDelta
from factsmith.tasks.edit.edit import ModuleEdit, WeightEdit
from factsmith.tasks.export.adapter import CONFIG, WEIGHTS, adapter_of
from factsmith.tasks.export.thin import thin, thin_edit
from factsmith.tasks.model.checkpoint import open_checkpoint
from tests.conftest import load_plain, plain_blocks, plain_projection

TOKENS = torch.arange(3, 27).view(2, 12)


def factors(rows: int, columns: int, rank: int, seed: int, dtype=torch.float64) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=dtype) / (10 * rank**0.5)
    return LowRankDelta(left, torch.randn(columns, rank, generator=generator, dtype=dtype))


def logits(model, dtype=torch.float32):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.to(dtype)


def edited_plainly(folder, change):
    """The logits of the plain model after ``change`` has written into it."""
    model = load_plain(folder)
    with torch.no_grad():
        change(model)
    return logits(model)


def add(module, delta) -> None:
    """Add (d_out, d_in) to a weight, which GPT-2 stores as (d_in, d_out)."""
    dense = (delta.dense() if hasattr(delta, "dense") else delta).float()
    module.weight += dense.T if type(module).__name__ == "Conv1D" else dense


def shape(module) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)


def peft_logits(folder, adapter_folder):
    """With the adapter beside the weights, and merged into them."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_plain(folder), adapter_folder).eval()
    beside = logits(model)
    return beside, logits(model.merge_and_unload())


def close(found, wanted, base) -> None:
    """Within 1e-5 of the logits, and the edit is not so small that this says nothing."""
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() <= 1e-5 * scale
    assert (base - wanted).abs().max() > 1e-2 * scale


def saved(folder, edit, out):
    checkpoint = open_checkpoint(folder)
    adapter = adapter_of(empty_model(checkpoint.config), checkpoint.layout, edit)
    adapter.save(out, *checkpoint.source)
    return adapter


def test_peft_loads_what_an_edit_makes_of_a_model(model_folder, tmp_path):
    """Of every family: output projections of several ranks, one of them above the width, in a sequence's factors."""
    plain = load_plain(model_folder)
    base = logits(plain)
    places = [plain_projection(block) for block in plain_blocks(plain)]
    rows, columns = shape(places[1])
    wide = factors(rows, columns, 3, 5)
    repeated = LowRankDelta(torch.cat([wide.left] * 20, 1), torch.cat([wide.right / 20] * 20, 1))
    edit = WeightEdit({1: factors(rows, columns, 4, 1), 2: repeated, 3: factors(rows, columns, 1, 2, torch.float32)})
    adapter = saved(model_folder, edit, tmp_path)

    def change(model):
        for layer, delta in edit.deltas.items():
            add(plain_projection(plain_blocks(model)[layer]), delta)

    wanted = edited_plainly(model_folder, change)
    for found in peft_logits(model_folder, tmp_path):
        close(found, wanted, base)
    assert [one.rank for one in adapter.modules.values()] == [4, 3, 1]  # 60 columns of rank 3
    assert max(one.error for one in adapter.modules.values()) < 1e-6


def test_modules_of_the_attention_are_adapted(model_folder, tmp_path):
    """What LoRA and others change: projections of queries and values, joined in some families."""
    checkpoint = open_checkpoint(model_folder)
    plain = load_plain(model_folder)
    base = logits(plain)
    block = checkpoint.layout.blocks(plain)[2]
    names = checkpoint.layout.query_value(block)
    deltas = {(2, name): factors(*shape(block.get_submodule(name)), 2, seed) for seed, name in enumerate(names)}
    saved(model_folder, ModuleEdit(deltas), tmp_path)

    def change(model):
        for (layer, name), delta in deltas.items():
            add(plain_blocks(model)[layer].get_submodule(name), delta)

    for found in peft_logits(model_folder, tmp_path):
        close(found, edited_plainly(model_folder, change), base)


def test_servers_find_names_and_one_scale(llama_folder, gpt2_folder, tmp_path):
    """vLLM and llama.cpp read the names of tensors; older ones read r and alpha, and no patterns."""
    from safetensors import safe_open

    edit = WeightEdit({0: factors(24, 40, 2, 1), 2: factors(24, 40, 5, 2)})
    for name, folder in (("llama", llama_folder), ("gpt2", gpt2_folder)):
        (tmp_path / name).mkdir()
        saved(folder, edit, tmp_path / name)
    with safe_open(tmp_path / "llama" / WEIGHTS, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    name = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"
    assert shapes == {
        name.format(0, "A"): [2, 40], name.format(0, "B"): [24, 2],
        name.format(2, "A"): [5, 40], name.format(2, "B"): [24, 5],
    }  # fmt: skip
    config = json.loads((tmp_path / "llama" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 5
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.0.mlp.down_proj": 2}
    assert config["base_model_name_or_path"] == str(llama_folder)
    assert not config["fan_in_fan_out"]
    assert all(re.fullmatch(r"[a-z0-9_.]+", one) for one in config["target_modules"])
    assert json.loads((tmp_path / "gpt2" / CONFIG).read_text())["fan_in_fan_out"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_of_half_precision_gets_the_change_in_float32(dtype, llama_folder, tmp_path):
    from peft import PeftModel

    edit = WeightEdit({1: factors(24, 40, 3, 4)})
    saved(llama_folder, edit, tmp_path)
    model = PeftModel.from_pretrained(load_plain(llama_folder, dtype), tmp_path)
    module = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    found = module.get_delta_weight("default")
    assert (found - edit.deltas[1].dense()).norm() < 1e-6 * found.norm()


def test_truncation_is_the_best_of_its_rank():
    """Singular values 3, 2, 1 by construction: of rank 2, the error is 1 / sqrt(14)."""
    basis, _ = torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    other, _ = torch.linalg.qr(torch.randn(30, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    values = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    low_rank = LowRankDelta(basis * values, other)
    best = (basis[:, 1:] * values[1:]) @ other[:, 1:].T
    for delta in (low_rank, DenseDelta(low_rank.dense().float())):
        found = thin(delta, 2)
        assert found.full_rank == 3
        assert found.error == pytest.approx(14**-0.5, rel=1e-6)
        torch.testing.assert_close(found.delta.dense(), best, atol=1e-6, rtol=0)
        assert found.delta.left.norm() == pytest.approx(float(found.delta.right.norm()))
    assert thin(low_rank, 7).delta.rank == 3
    edit, changes = thin_edit(WeightEdit({4: DenseDelta(low_rank.dense())}), 1)
    assert edit.deltas[4].rank == 1
    assert changes["layer 4"].error == pytest.approx((5 / 14) ** 0.5)


def test_a_change_that_is_zero_has_one_column(llama_folder, tmp_path):
    saved(llama_folder, WeightEdit({1: LowRankDelta(torch.zeros(24, 4), torch.ones(40, 4))}), tmp_path)
    beside, merged = peft_logits(llama_folder, tmp_path)
    wanted = logits(load_plain(llama_folder))
    assert torch.equal(beside, wanted)
    assert torch.equal(merged, wanted)


def test_dense_changes_have_no_adapter(llama_folder, tmp_path):
    with pytest.raises(InputError, match="no thin factors") as refused:
        saved(llama_folder, WeightEdit({1: DenseDelta(torch.ones(24, 40))}), tmp_path)
    assert "layers.1.mlp.down_proj" in str(refused.value)
