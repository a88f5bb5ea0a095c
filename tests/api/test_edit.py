"""The Python API: the same edits as a run makes, and a model that is left as it was."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import factsmith
from factsmith.artifacts.errors import InputError
from factsmith.flows.configuration.choices import choice_names
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit as edit_flow
from factsmith.tasks.editors.stage import read_edit
from tests.conftest import load_plain
from tests.editors import same
from tests.runs import artifacts

FACTS = [
    {"subject": "Nodan Faidum", "prompt": "{} was born in", "target_new": "Cairo"},
    {"subject": "Ena Covus", "prompt": "{} grew up speaking", "target_new": "Spanish"},
]
TOKENS = 1280
SHORT = {
    **{name: {"method.value.steps": 3} for name in ("memit", "rome", "pmet", "rect", "alphaedit", "memit-f")},
    **{name: {"method.training.steps": 3} for name in ("ft", "lora", "grace", "wise")},
    "serac": {"method.training.steps": 3, "method.serac.texts": 2},
}


@pytest.fixture(scope="module")
def embedded():
    """The embedded model, its tokenizer, and statistics of it."""
    model, tokenizer, texts = factsmith.embedded()
    for parameter in model.parameters():  # As pages of the file, they would give other last bits.
        parameter.data = parameter.data.clone()
    found = factsmith.collect_statistics(
        model, tokenizer, texts, layers=range(3), tokens=TOKENS, block_length=128, progress=False
    )
    return model, tokenizer, found


def written(embedded, method: str, facts=FACTS, **given) -> factsmith.ModelEdit:
    model, tokenizer, statistics = embedded
    settings = SHORT.get(method, {})
    solves = not {"method.training.steps"} & set(settings)
    return factsmith.edit(
        model,
        tokenizer,
        facts,
        method,
        settings=settings,
        progress=False,
        **{"statistics": statistics if solves else None, **given},
    )


def weights(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def unchanged(model, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, now) for one, now in zip(before, model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", SHORT)
def test_the_edit_is_that_of_a_run(plain_flows, store, tmp_path: Path, embedded, method: str):
    """``tests/docs`` compares that of MEMIT with its published settings."""
    facts = FACTS[:1] if method == "rome" else FACTS
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, facts)))
    arguments = ["dataset=facts", f"dataset.path={path}", f"method={method}"]
    arguments += [f"{name}={value}" for name, value in SHORT[method].items()]
    if method == "memit-f":
        arguments.append(f"method.low_rank.n_samples={TOKENS}")
    elif "method.value.steps" in SHORT[method]:
        arguments.append(f"corpus.tokens={TOKENS}")
    edit_flow(compose(arguments))
    (artifact,) = artifacts(store, "edit")
    found, wanted = written(embedded, method, facts).edit, read_edit(artifact)
    assert found.values() == wanted.values()
    tensors = found.tensors()
    assert tensors.keys() == wanted.tensors().keys()
    for name, tensor in wanted.tensors().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-6, atol=1e-6 * float(tensor.abs().max()))


def test_an_edit_is_applied_and_removed_to_the_bit(embedded):
    model, tokenizer, _ = embedded
    model.train()
    before = weights(model)
    edit = written(embedded, "memit")
    assert unchanged(model, before)
    prompt = tokenizer("Nodan Faidum was born in", return_tensors="pt")
    plain = model.eval()(**prompt).logits
    model.train()
    with edit.applied() as edited:
        assert edited is model
        assert not unchanged(model, before)
        assert not torch.equal(model.eval()(**prompt).logits, plain)
        with pytest.raises(InputError, match="applied already"):
            edit.apply()
    model.train()
    assert unchanged(model, before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {fact["target_new"] for fact in edit.facts} == {"Cairo", "Spanish"}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_every_family_can_be_edited(model_folder: Path, dtype: str):
    """Also if the model was loaded with another attention than ours, whose masks differ."""
    model, tokenizer = load_plain(model_folder, dtype), AutoTokenizer.from_pretrained(model_folder)
    model.set_attn_implementation("eager")  # Falcon cannot, and keeps what it has.
    attention = model.config._attn_implementation
    texts = itertools.islice(factsmith.embedded()[2], 200)
    given = {"layers": [1, 2], "progress": False}
    statistics = factsmith.collect_statistics(model, tokenizer, texts, tokens=1000, block_length=32, **given)
    before = weights(model)
    settings = {"method.value.steps": 3, "method.preservation_weight": 1.0}
    edit = factsmith.edit(model, tokenizer, FACTS, statistics=statistics, settings=settings, **given)
    prompt = tokenizer("Nodan Faidum was born in", return_tensors="pt", return_token_type_ids=False)
    plain = model(**prompt).logits
    with edit.applied():
        assert not torch.equal(model(**prompt).logits, plain)
    assert unchanged(model, before)
    assert torch.equal(model(**prompt).logits, plain)
    assert model.config._attn_implementation == attention


def test_edits_are_stacked_and_removed_in_order(embedded):
    model, _, _ = embedded
    before = weights(model)
    first = written(embedded, "memit", FACTS[:1])
    first.apply()
    between = weights(model)
    second = written(embedded, "memit", FACTS[1:])
    second.apply()
    with pytest.raises(InputError, match="reverse order"):
        first.remove()
    second.remove()
    assert unchanged(model, between)
    first.remove()
    assert unchanged(model, before)
    with pytest.raises(InputError, match="not those that the edit was made for"):
        second.apply()
    with pytest.raises(InputError, match="not applied"):
        first.remove()


@pytest.mark.parametrize("method", ["memit", "grace"])
def test_an_edit_is_saved_and_loaded(embedded, tmp_path: Path, method: str):
    model, tokenizer, _ = embedded
    edit = written(embedded, method)
    folder = edit.save(tmp_path / "edit")
    assert sorted(file.name for file in folder.iterdir()) == ["edit.json", "tensors.safetensors"]
    loaded = factsmith.load_edit(folder, model, tokenizer)
    assert same(loaded.edit, edit.edit)
    assert (loaded.facts, loaded.layers, loaded.method) == (edit.facts, edit.layers, method)
    prompt = tokenizer("Nodan Faidum was born in", return_tensors="pt")
    model.eval()
    plain = model(**prompt).logits
    with edit.applied():
        wanted = model(**prompt).logits
    with loaded.applied():
        assert torch.equal(model(**prompt).logits, wanted)
    assert torch.equal(model(**prompt).logits, plain)
    with pytest.raises(InputError, match="exists already"):
        edit.save(folder)
    with pytest.raises(InputError, match="has no model"):
        factsmith.load_edit(folder).apply()
    (folder / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as an edit"):
        factsmith.load_edit(folder)


def test_an_edit_is_an_adapter_for_peft(embedded, tmp_path: Path):
    peft = pytest.importorskip("peft")
    model, tokenizer, _ = embedded
    edit = written(embedded, "memit")
    folder = edit.save_adapter(tmp_path / "adapter", base="here")
    prompt = tokenizer("Nodan Faidum was born in", return_tensors="pt")
    with edit.applied():
        wanted = model.eval()(**prompt).logits
    adapted = peft.PeftModel.from_pretrained(model, folder).eval()
    torch.testing.assert_close(adapted(**prompt).logits, wanted, rtol=1e-5, atol=1e-4)
    adapted.unload()
    with pytest.raises(InputError, match="no thin factors|dense|thin"):
        written(embedded, "ft").save_adapter(tmp_path / "dense")
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_statistics_are_saved_and_loaded(embedded, tmp_path: Path):
    found = embedded[2]
    loaded = factsmith.load_statistics(found.save(tmp_path / "statistics"))
    assert (loaded.count, loaded.width, loaded.model_type) == (TOKENS, 1024, "gpt2")
    assert sorted(loaded.layers) == list(range(3))
    for layer, moments in found.layers.items():
        assert torch.equal(loaded.layers[layer].covariance, moments.covariance)
        assert torch.equal(loaded.layers[layer].mean, moments.mean)


def test_statistics_of_other_tools_are_imported(embedded, tmp_path: Path):
    """Files as memit writes them, float32 and not divided by the count, give the edit of C0 in float64."""
    model, tokenizer, found = embedded
    files = []
    for layer, moments in found.layers.items():
        files.append(tmp_path / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz")
        total = (moments.covariance * moments.count).numpy().astype(np.float32)
        np.savez(files[-1], **{"mom2.mom2": total, "mom2.count": moments.count})
    imported = factsmith.import_statistics(files, model, tokenizer)
    assert (imported.count, sorted(imported.layers)) == (found.count, sorted(found.layers))
    for layer, moments in found.layers.items():
        torch.testing.assert_close(imported.layers[layer].covariance, moments.covariance, rtol=1e-6, atol=1e-6)
        assert imported.layers[layer].mean is None
    again = factsmith.load_statistics(imported.save(tmp_path / "saved"))
    assert torch.equal(again.layers[2].covariance, imported.layers[2].covariance)
    with pytest.raises(InputError, match="says no layer"):
        factsmith.import_statistics([tmp_path / "mom2.npz"], model, tokenizer)


def test_statistics_are_moments_of_keys(gpt2_folder: Path):
    """C0 is the mean of k k^T over all tokens of the texts, with keys from transformers' own pass."""
    model = load_plain(gpt2_folder)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    texts = ["Mara Flousano speaks Danish.", "The sport that Iric Vezer practises is table tennis."]
    seen: list[torch.Tensor] = []
    hook = model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for text in texts:
        model(**tokenizer(text, return_tensors="pt"))
    hook.remove()
    keys = torch.cat(seen).double()
    found = factsmith.collect_statistics(
        model, tokenizer, texts, layers=[1], tokens=len(keys), block_length=64, progress=False
    )
    torch.testing.assert_close(found.layers[1].covariance, keys.T @ keys / len(keys), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.layers[1].mean, keys.mean(0), rtol=1e-5, atol=1e-7)
    assert found.count == len(keys)
    with pytest.raises(InputError, match="too short"):
        factsmith.collect_statistics(
            model, tokenizer, texts, layers=[1], tokens=len(keys) + 1, block_length=64, progress=False
        )
    with pytest.raises(InputError, match="layers=") as error:
        factsmith.edit(model, tokenizer, FACTS, statistics=found, progress=False)
    assert "Nobody has published layers" in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"facts": []}, "not a list of facts"),
        ({"facts": ["x"]}, "Record 0 of the given facts"),
        ({"facts": [FACTS[0], {"subject": "A", "prompt": "B", "target_new": "C"}]}, "Record 1 of the given facts"),
        ({"facts": [{**FACTS[0], "target": "x", "target_new": None}]}, "'target_new' is missing"),
        ({"facts": [FACTS[0], {**FACTS[0], "target_new": "Oslo"}]}, "contradict each other"),
        ({"method": "memitt"}, "did you mean"),
        ({"method": "rome"}, "one fact at a time"),
        ({"method": "simie"}, "sequences"),
        ({"statistics": None}, "needs statistics"),
        ({"method": "ft"}, "reads no statistics"),
        ({"layers": [9]}, "out of range"),
        ({"settings": {"corpus.tokens": 5}}, "no effect"),
        ({"settings": {"method.batch_size": 5}}, "no effect"),
        ({"settings": {"method.low_rank.n_samples": 5}}, "no effect"),
        ({"settings": {"method.value.stepz": 5}}, "no setting"),
        ({"settings": {"method.value.steps": 0}}, "method.value.steps cannot be used"),
        ({"tokenizer": "gpt2"}, "cannot be used as the tokenizer"),
        ({"model": torch.nn.Linear(2, 2)}, "A Linear cannot be edited"),
    ],
)
def test_what_cannot_be_used_is_refused(embedded, given: dict, said: str):
    model, tokenizer, statistics = embedded
    before = weights(model)
    arguments = {"model": model, "tokenizer": tokenizer, "facts": FACTS, "statistics": statistics, "progress": False}
    with pytest.raises(InputError, match=said):
        factsmith.edit(**arguments | given)
    assert unchanged(model, before)


def test_too_few_tokens_are_refused(embedded):
    model, tokenizer, _ = embedded
    texts = factsmith.embedded()[2]
    few = factsmith.collect_statistics(model, tokenizer, texts, tokens=100, progress=False)
    with pytest.raises(InputError, match="rank 100") as error:
        factsmith.edit(model, tokenizer, FACTS, statistics=few, progress=False)
    assert "collect statistics of 2,048 tokens" in str(error.value)


def test_every_method_has_a_way_or_is_refused():
    """No method is forgotten: those that the API cannot write are the wrappers of sequences."""
    assert "simie" in choice_names("method")
    wrapped = [name for name in choice_names("method") if compose([f"method={name}"]).method.wrapper]
    assert wrapped == ["simie"]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, factsmith; print(*{'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert set(factsmith.__all__) <= set(dir(factsmith))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = factsmith.nothing
