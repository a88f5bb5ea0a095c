"""An exported model with a memory, as transformers runs it, is the decoder with the edit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import save_json, save_tensors
from factsmith.tasks.decoder.generation import continuations
from factsmith.tasks.editors.load import BASE, load_edited, prompt_ends
from tests.conftest import load
from tests.tasks.editors.test_memory import logits, prompts_of, written

MORE = 6


@pytest.fixture(
    params=[
        "gpt2_folder-wise",
        "gpt2_folder-serac",
        "gpt2_folder-serac-gptj",
        *(pytest.param(f"llama_folder-{one}", marks=pytest.mark.slow) for one in ("grace", "melo")),
    ],
    scope="module",
)
def exported(request, tmp_path_factory: pytest.TempPathFactory, family_folder):
    """A decoder, its edit, perhaps with a counterfactual model of another family, and a folder with both."""
    tmp_path = tmp_path_factory.mktemp("exported")
    folder, name, *family = request.param.split("-")
    decoder = load(request.getfixturevalue(folder))
    more = {"other": load(family_folder(family[0])), "training": {"steps": 3, "learning_rate": 0.01}} if family else {}
    edit = written(decoder, name, **more)
    decoder.save(tmp_path / BASE)
    decoder.tokenizer.save_pretrained(tmp_path / BASE)
    save_tensors(tmp_path / "edit.safetensors", edit.tensors())
    save_json(tmp_path / "edit.json", {"kind": edit.kind, "values": edit.values()})
    return decoder, edit, tmp_path


def padded(prompts, side: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        empty = [0] * (longest - len(prompt))
        rows.append([*empty, *prompt] if side == "left" else [*prompt, *empty])
        masks.append([0] * len(empty) + [1] * len(prompt) if side == "left" else [1] * len(prompt) + [0] * len(empty))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_has_the_logits_of_the_decoder(exported, side):
    decoder, edit, folder = exported
    prompts = prompts_of(decoder)
    unedited = logits(decoder, prompts)
    with edit.applied(decoder):
        wanted = logits(decoder, prompts)
    batch = padded(prompts, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = load_edited(folder)(**batch, position_ids=positions).logits
    assert not torch.allclose(wanted, unedited, atol=1e-2)
    for row, prompt in enumerate(prompts):
        here = found[row, -len(prompt) :] if side == "left" else found[row, : len(prompt)]
        torch.testing.assert_close(here, wanted[row, : len(prompt)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cached", [True, False])
def test_generation_keeps_what_was_decided_for_the_prompt(exported, cached):
    decoder, edit, folder = exported
    prompts = prompts_of(decoder)
    limits = [len(prompt) + MORE for prompt in prompts]
    unedited = continuations(decoder, prompts, limits, most_tokens=4096)
    with edit.applied(decoder):
        wanted = continuations(decoder, prompts, limits, most_tokens=4096)
    assert wanted != unedited
    model = load_edited(folder)
    given = {"max_new_tokens": MORE, "min_new_tokens": MORE, "do_sample": False, "use_cache": cached, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    found = model.generate(**padded(prompts, "left"), **given | {"min_new_tokens": None})
    assert found[:, -MORE:].tolist() == wanted
    # Beams of one prompt share its decision.
    beams = model.generate(
        torch.tensor([prompts[0]]), max_new_tokens=MORE, num_beams=3, do_sample=False, pad_token_id=0
    )
    assert beams.shape == (1, len(prompts[0]) + MORE)


@torch.no_grad()
def test_two_generations_in_turn_do_not_mix(exported):
    decoder, _, folder = exported
    model = load_edited(folder)
    one, other = (torch.tensor([prompt]) for prompt in (prompts_of(decoder)[0], prompts_of(decoder)[-1]))
    more = torch.tensor([[5]])
    alone = [model(more, past_key_values=model(each).past_key_values).logits for each in (one, other)]
    caches = [model(each).past_key_values for each in (one, other)]
    mixed = [model(more, past_key_values=cache).logits for cache in caches]
    assert all(map(torch.equal, alone, mixed))


@torch.no_grad()
def test_a_target_is_scored_with_the_decision_of_its_prompt(exported):
    decoder, edit, folder = exported
    prompt = prompts_of(decoder)[0]
    with edit.applied(decoder), decoder.prompted([len(prompt) - 1]):
        wanted = decoder.logits(decoder.run(decoder.embed(torch.tensor([[*prompt, 7, 8]])), 0, decoder.block_count))
    model = load_edited(folder)
    with prompt_ends(model, [len(prompt) - 1]):
        found = model(torch.tensor([[*prompt, 7, 8]])).logits
        other = model(torch.tensor([[*prompts_of(decoder)[-1], 7, 8]])).logits  # A pass that decides anew.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with prompt_ends(model, [len(prompt) - 1]):
        assert torch.equal(model(torch.tensor([[*prompts_of(decoder)[-1], 7, 8]])).logits, other)


def test_what_cannot_be_known_is_refused(exported):
    decoder, _, folder = exported
    model, unedited = load_edited(folder), load(folder / BASE).model
    batch = padded(prompts_of(decoder), "right")["input_ids"]
    with pytest.raises(ValueError, match="attention_mask"):
        model(batch)
    with pytest.raises(ValueError, match="cache"):
        model(batch[:1, -1:], past_key_values=unedited(batch[:1, :-1]).past_key_values)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(batch[:1], max_new_tokens=2, prefill_chunk_size=2, pad_token_id=0)
    with pytest.raises(ValueError, match="save_pretrained"):
        model.save_pretrained(folder / "again")
    assert model(batch[:1]).logits.shape[1] == batch.shape[1]  # A refusal leaves nothing behind.
    with pytest.raises(InputError, match="no readable memory"):
        load_edited(folder / BASE)


def test_a_memory_of_an_unknown_kind_is_refused(exported, tmp_path):
    folder = Path(shutil.copytree(exported[2], tmp_path / "copy"))
    stored = json.loads((folder / "edit.json").read_text())
    save_json(folder / "edit.json", stored | {"kind": "gracee"})
    with pytest.raises(InputError, match="no editor 'gracee'"):
        load_edited(folder)
