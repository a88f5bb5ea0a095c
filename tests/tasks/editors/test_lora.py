"""LoRA on tiny models, against PEFT on plain transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.layout import canonical_weight
from factsmith.tasks.edit.edit import ModuleEdit
from factsmith.tasks.editors.methods.lora import EDITOR
from factsmith.tasks.editors.modules import find_modules
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.model.checkpoint import open_checkpoint
from tests.conftest import load
from tests.editors import losses, same, task
from tests.edits import facts, weights
from tests.tasks.decoder.test_placement import offloaded

pytest.importorskip("peft")

CONTEXTS = ("{}", "The judge plays the flute. {}")
SHORT = {"steps": 4, "learning_rate": 0.02}


def write(decoder, before=None, requests=None, contexts=CONTEXTS, training=SHORT, **lora):
    given = {"rank": 3, "alpha": 7, **lora}
    written = task([1, 2], requests, contexts, training=training, lora=given)
    return EDITOR.write(decoder, before, written)


def test_the_edit_is_what_peft_trained(decoder):
    """The last losses come from the model with PEFT's modules, and the edit gives the same ones without them."""
    written = write(decoder, contexts=("{}",))
    with written.edit.applied(decoder):
        after = losses(decoder, facts())
    assert after == pytest.approx([fit.loss for fit in written.fits], rel=1e-4)
    assert after != pytest.approx(losses(decoder, facts()), rel=1e-2)
    assert {delta.rank for delta in written.edit.deltas.values()} == {3}


def test_the_model_and_the_global_generator_are_as_they_were(gpt2_folder):
    decoder = load(gpt2_folder, "bfloat16")
    before, modules = weights(decoder), {name: id(one) for name, one in decoder.model.named_modules()}
    attributes, state = set(vars(decoder.model)), torch.get_rng_state()
    write(decoder)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(decoder), strict=True))
    assert {name: id(one) for name, one in decoder.model.named_modules()} == modules
    assert set(vars(decoder.model)) == attributes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())


@pytest.fixture
def gpt2(gpt2_folder):
    return load(gpt2_folder)


def test_only_the_named_modules_of_the_layers_change(gpt2):
    before = dict(gpt2.model.named_parameters())
    before = {name: one.clone() for name, one in before.items()}
    edit = write(gpt2, modules=["c_attn", "2.mlp.c_fc"]).edit
    with edit.applied(gpt2):
        now = dict(gpt2.model.named_parameters())
        changed = {name for name, one in now.items() if not torch.equal(one, before[name])}
    blocks = "transformer.h."
    assert changed == {f"{blocks}{name}.weight" for name in ("1.attn.c_attn", "2.attn.c_attn", "2.mlp.c_fc")}
    assert edit.first_layer == 1
    assert all(torch.equal(one, before[name]) for name, one in gpt2.model.named_parameters())


def test_all_contexts_are_data(gpt2):
    """A prompt is learned better in a context that is among the data."""
    request = facts()[:1]
    both = write(gpt2, requests=request, training={"steps": 30, "learning_rate": 0.02}).edit
    one = write(gpt2, requests=request, contexts=CONTEXTS[:1], training={"steps": 30, "learning_rate": 0.02}).edit
    prefixed = [replace(request[0], template=CONTEXTS[1].replace("{}", request[0].template))]
    found = []
    for edit in (both, one):
        with edit.applied(gpt2):
            found.append(losses(gpt2, prefixed)[0])
    assert found[0] < found[1] - 1


def test_a_sequence_continues_to_the_same_bits_and_rank(gpt2):
    first = write(gpt2, requests=facts()[:2]).edit
    stored = ModuleEdit.read(first.tensors(), first.values())
    one, other = (write(gpt2, edit, facts()[2:]).edit for edit in (first, stored))
    assert same(one, other)
    assert not same(one, first)
    assert {delta.rank for delta in one.deltas.values()} == {3}


def test_the_seed_decides(gpt2):
    torch.manual_seed(1)
    one = write(gpt2).edit
    torch.manual_seed(2)
    assert same(one, write(gpt2).edit)
    assert not same(one, write(gpt2, training={**SHORT, "seed": 1}).edit)


def test_a_model_whose_weights_are_elsewhere_gets_the_same_edit(gpt2):
    assert same(write(gpt2).edit, write(offloaded(gpt2)).edit)


def test_names_that_nothing_has_and_ranks_beyond_a_module_are_refused(gpt2_folder):
    checkpoint = open_checkpoint(gpt2_folder)

    def check(**lora):
        method = WritingSettings(name="lora", editor="lora", layers=[0, 1], preservation="identity", lora=lora)
        EDITOR.check_model(method, [0, 1], checkpoint)

    check(modules=["c_attn", "1.mlp.c_fc"])
    with pytest.raises(InputError, match="No linear module of the edited layers is called 'attn'") as caught:
        check(modules=["attn"])
    assert caught.value.details["expected"] == "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"
    with pytest.raises(InputError, match="'2.mlp.c_fc'"):
        check(modules=["2.mlp.c_fc"])
    with pytest.raises(InputError, match="attn.c_attn of layer 0 has no change of rank 25"):
        check(rank=25)


def test_peft_is_asked_for_before_anything_long(refused, arguments, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more))
    told = refused("run", *arguments("method=lora"))
    assert "PEFT, which trains LoRA, is not installed." in told
    assert "pip install 'factsmith[lora]'" in told


def test_places_are_found_by_the_last_parts_of_a_name(gpt2):
    found = find_modules(gpt2.blocks, [0, 2], ["mlp.c_proj", "0.attn.c_proj"], gpt2.layout.query_value)
    assert found == [(0, "attn.c_proj"), (0, "mlp.c_proj"), (2, "mlp.c_proj")]
    assert canonical_weight(gpt2.blocks[2].get_submodule("mlp.c_proj")).shape == (24, 40)
