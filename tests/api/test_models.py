"""The Python API on models that are moved, copied, changed, or not there: no edit is lost or applied to others."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import factsmith
from factsmith.artifacts.errors import InputError
from tests.conftest import load_plain

FACTS = [{"subject": "Nodan Faidum", "prompt": "{} was born in", "target_new": "Cairo"}]
QUICK = {"layers": [1, 2], "progress": False}


@pytest.fixture
def parts(gpt2_folder: Path):
    """A tiny GPT-2, its tokenizer, and a function that edits it without statistics."""
    model, tokenizer = load_plain(gpt2_folder), AutoTokenizer.from_pretrained(gpt2_folder)

    def write(method: str = "ft", **given):
        settings = {"settings": {"method.training.steps": 2}}
        return factsmith.edit(model, tokenizer, FACTS, method, **QUICK | settings | given)

    return model, tokenizer, write


def weights(model) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def same(model, wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one, wanted[name].to(one.dtype)) for name, one in model.state_dict().items())


def test_a_model_that_moves_while_it_is_edited_gets_its_weights_back(parts):
    """GPT-2's weights are used as transposed views, which a move leaves behind."""
    model, _, write = parts
    before, edit = weights(model), write()
    edit.apply()
    for parameter in model.parameters():  # As ``model.to(device)`` does.
        parameter.data = parameter.data.clone()
    assert not same(model, before)
    edit.remove()
    assert same(model, before)
    edit.apply()
    model.to(torch.bfloat16)
    edit.remove()
    assert model.dtype == torch.bfloat16
    assert same(model, before)
    with pytest.raises(InputError, match="in the same data type"):
        edit.apply()


def test_an_edited_model_is_copied_and_pickled(parts):
    model, _, write = parts
    plain, edit = vars(model).keys(), write()
    with edit.applied():
        edited = weights(model)
        torch.save(model, io.BytesIO())
        other = copy.deepcopy(model)
    assert same(other, edited)
    assert not same(model, edited)
    assert vars(model).keys() == plain


def test_an_edit_is_not_applied_where_another_layer_has_changed(parts):
    """Its value vectors and keys were found with the weights of all layers."""
    model, _, write = parts
    edit, other = write(), write(layers=[0])
    with other.applied(), pytest.raises(InputError, match="the weights that this edit changes are the same"):
        edit.apply()
    with torch.no_grad():
        model.transformer.wte.weight[5, 3] += 1
    with pytest.raises(InputError, match="a model with 0 other edits"):
        edit.apply()


def test_nothing_is_written_into_a_model_with_a_memory(parts):
    model, _, write = parts
    memory, edit, before = write("grace", layers=[1]), write(), weights(model)
    with memory.applied():
        for refused in (edit.apply, write):
            with pytest.raises(InputError, match="has a memory"):
                refused()
    assert same(model, before)


def test_gradients_may_be_off(parts):
    model, _, write = parts
    before = weights(model)
    with torch.inference_mode():
        edit = write()
        with edit.applied():
            assert not same(model, before)
    assert same(model, before)


def test_double_precision_is_kept(parts):
    model, _, write = parts
    model.double()
    edit, before = write(), weights(model)
    with edit.applied():
        change = edit.edit.deltas[1].dense().double().T
        weight = model.transformer.h[1].mlp.c_proj.weight.detach()
        assert torch.equal(weight, before["transformer.h.1.mlp.c_proj.weight"] + change)


def test_weights_that_cannot_be_edited_are_refused(parts):
    model, tokenizer, write = parts
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(InputError, match="no numbers"):
        factsmith.edit(empty, tokenizer, FACTS, "ft", **QUICK)
    model.transformer.h[1].mlp.c_proj.weight.requires_grad_(False)
    model.transformer.h[1].mlp.c_proj.weight.data = torch.zeros(40, 24, dtype=torch.int8)
    with pytest.raises(InputError, match="in int8"):
        write()
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(target_modules=["mlp.c_proj"], fan_in_fan_out=True))
    with pytest.raises(InputError, match=r"peft\.tuners"):
        write()


def test_a_saved_edit_whose_tensors_were_exchanged_is_refused(parts, tmp_path: Path):
    model, tokenizer, write = parts
    one, other = write().save(tmp_path / "one"), write(layers=[1]).save(tmp_path / "other")
    assert factsmith.load_edit(one, model, tokenizer).layers == [1, 2]
    (one / "tensors.safetensors").write_bytes((other / "tensors.safetensors").read_bytes())
    with pytest.raises(InputError, match="is not the file that edit.json was written with"):
        factsmith.load_edit(one)
    about = json.loads((other / "edit.json").read_text())
    (other / "edit.json").write_text(json.dumps({**about, "layers": [99]}))
    with pytest.raises(InputError, match="Layer 99 is out of range"):
        factsmith.load_edit(other, model, tokenizer).apply()


def test_statistics_of_a_model_with_other_blocks_are_refused(parts):
    model, tokenizer, _ = parts
    texts = ["Mara Flousano speaks Danish."] * 9
    found = factsmith.collect_statistics(model, tokenizer, texts, tokens=60, block_length=32, **QUICK)
    with pytest.raises(InputError, match="another model") as error:
        factsmith.edit(model, tokenizer, FACTS, statistics=replace(found, blocks=6), **QUICK)
    assert "gpt2 with 6 blocks" in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": 2}, "method.layers cannot be used"),
        ({"method": None}, "The method cannot be used"),
        ({"settings": ["method.value.steps"]}, "The settings cannot be used"),
        ({"settings": {1: 2}}, "1 would have no effect"),
        ({"statistics": "folder"}, "A str cannot be used as the statistics"),
    ],
)
def test_arguments_of_another_type_are_refused(parts, given: dict, said: str):
    with pytest.raises(InputError, match=said):
        parts[2](**given)


def test_texts_of_another_type_are_refused(parts):
    model, tokenizer, _ = parts
    for given, said in (
        ({"texts": None}, "no texts"),
        ({"texts": ["\ud800"]}, "Text 0"),
        ({"texts": ["a"], "tokens": 1.5}, "whole number"),
        ({"texts": ["a"], "layers": "1"}, "layers are not numbers"),
    ):
        with pytest.raises(InputError, match=said):
            factsmith.collect_statistics(model, tokenizer, **QUICK | {"block_length": 32} | given)
