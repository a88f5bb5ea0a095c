"""Another model as SERAC's counterfactual model: its logits within the scope of facts, and who may be one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import factsmith
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.formats import save_json
from factsmith.artifacts.store import Store
from factsmith.flows.configuration.composition import compose
from factsmith.flows.edit import edit as edit_flow
from factsmith.tasks.decoder.batching import pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import continuations
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.text import EncodedPrompt
from factsmith.tasks.editors.editor import load_editor
from factsmith.tasks.editors.load import load_edited
from factsmith.tasks.editors.memory.edit import MemoryEdit
from factsmith.tasks.editors.memory.whole_model import Reader, _fitted, check_counterfactual
from factsmith.tasks.editors.stage import read_edit
from factsmith.tasks.evaluation.held_out.drift import block_drift
from factsmith.tasks.planning.plan import plan
from factsmith.tasks.planning.preflight import check_input
from factsmith.tasks.planning.run import Run
from tests.conftest import FAMILIES, load, load_plain
from tests.editors import same
from tests.edits import facts, weights
from tests.runs import artifacts
from tests.tasks.editors.test_load import MORE, padded
from tests.tasks.editors.test_memory import logits, mean_nll, prompts_of, written

UNTRAINED = {"training": {"steps": 1, "stop_loss": 1e9}}
SERAC = ["method=serac", "method.layers=[1]"]


@pytest.fixture(scope="module")
def smaller(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of another width and depth than the tiny GPT-2, with the same tokenizer and a longer context."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("smaller")
    config = LlamaConfig(
        vocab_size=400, max_position_embeddings=128, hidden_size=16, num_hidden_layers=3, intermediate_size=20,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def edited(gpt2_folder: Path, smaller: Path) -> tuple[Decoder, Decoder, MemoryEdit]:
    """A decoder, its counterfactual model before it was trained, and the edit."""
    decoder, other = load(gpt2_folder), load(smaller)
    return decoder, other, written(decoder, "serac", other=other)


def within(edit: MemoryEdit, decoder: Decoder, prompts) -> list[bool]:
    """Which prompts are within the scope of a fact."""
    with edit.applied(decoder), torch.no_grad(), decoder.prompted([len(prompt) - 1 for prompt in prompts]) as asked:
        decoder.run(decoder.embed(pad(prompts)), 0, decoder.block_count)
    (decided,) = asked.decided.values()
    return [fact >= 0 for fact in decided.tolist()]


def check_answers(decoder: Decoder, edit: MemoryEdit) -> None:
    """Passes and calls of ``decoder`` within a scope have the trained model's logits, and its own bits elsewhere."""
    before, prompts = weights(decoder), prompts_of(decoder)
    unedited, answered = logits(decoder, prompts), within(edit, decoder, prompts)
    assert answered[: len(facts())] == [True] * len(facts())
    assert not all(answered)
    wanted = logits(edit.whole.decoder(edit.parameters, decoder), prompts)
    assert not torch.allclose(wanted, unedited, atol=1e-2)
    limits = [len(prompt) + MORE for prompt in prompts]
    with edit.applied(decoder):
        found, generated = logits(decoder, prompts), continuations(decoder, prompts, limits, most_tokens=4096)
        encoded = [EncodedPrompt((*one, *more), len(more)) for one, more in zip(prompts, generated, strict=True)]
        likelihoods = continuation_likelihoods(decoder, encoded, most_tokens=4096)
        with torch.no_grad():
            called = decoder.model(**padded(prompts, "right")).logits
        given = padded(prompts, "left") | {"max_new_tokens": MORE, "do_sample": False, "pad_token_id": 0}
        decoder.model.generation_config.eos_token_id = None
        calls = [decoder.model.generate(**given, use_cache=cached)[:, -MORE:].tolist() for cached in (True, False)]
    for row, prompt in enumerate(prompts):
        end, length = len(prompt) - 1 if answered[row] else len(prompt), len(prompt)
        assert torch.equal(found[row, :end], unedited[row, :end]), row
        torch.testing.assert_close(found[row, end:length], wanted[row, end:length], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(called[row, :length], found[row, :length], rtol=1e-4, atol=1e-4)
    assert [one.correct for one in likelihoods] == [MORE] * len(prompts)
    assert calls == [generated, generated]
    assert all(map(torch.equal, weights(decoder), before))
    assert torch.equal(logits(decoder, prompts), unedited)


def test_another_model_answers_within_the_scope_of_a_fact(edited):
    decoder, _, edit = edited
    check_answers(decoder, edit)


def test_the_models_own_first_blocks_are_the_default(gpt2_folder, tmp_path):
    """A model that has nothing but copies of them is trained to the same bits, and gives the same logits."""
    decoder, shorter = load(gpt2_folder), load(gpt2_folder)
    shorter.model.transformer.h = shorter.blocks[:2]
    shorter.model.config.n_layer = 2
    shorter.save(tmp_path)
    shorter.tokenizer.save_pretrained(tmp_path)
    default, other = (written(decoder, "serac", other=one) for one in (None, load(tmp_path)))
    assert default.parameters.keys() == other.parameters.keys()
    assert all(torch.equal(default.parameters[name], one) for name, one in other.parameters.items())
    prompts, found = prompts_of(decoder), []
    for edit in (default, other):
        with edit.applied(decoder):
            found.append(logits(decoder, prompts))
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_any_family_answer_for_each_other(family, gpt2_folder, llama_folder, family_folder):
    folder = {"gpt2": gpt2_folder, "llama": llama_folder}.get(family) or family_folder(family)
    for decoder, other in ((load(folder), load(gpt2_folder)), (load(gpt2_folder), load(folder))):
        check_answers(decoder, written(decoder, "serac", other=other))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_untrained_model_itself_changes_nothing_within_the_scope(gpt2_folder, dtype):
    decoder, other = load(gpt2_folder, dtype), load(gpt2_folder, dtype)
    prompts = prompts_of(decoder)
    edit, unedited = written(decoder, "serac", other=other, **UNTRAINED), logits(decoder, prompts)
    assert any(within(edit, decoder, prompts))
    with edit.applied(decoder), torch.no_grad():
        found = logits(decoder, prompts)
        called = decoder.model(**padded(prompts, "right")).logits.float()
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(found[row, : len(prompt)], unedited[row, : len(prompt)])
        torch.testing.assert_close(called[row, : len(prompt)], unedited[row, : len(prompt)], rtol=2e-2, atol=2e-2)


def test_facts_are_learned_and_stored_and_their_cost_is_counted(edited, smaller):
    decoder, other, edit = edited
    assert all(map(torch.equal, weights(other), weights(load(smaller))))
    tensors, values = {key: one.clone() for key, one in edit.tensors().items()}, json.loads(json.dumps(edit.values()))
    prompts, found, before = prompts_of(decoder), [], mean_nll(decoder)
    for one in (edit, type(edit).read(tensors, values)):
        with one.applied(decoder):
            found.append(logits(decoder, prompts))
            assert mean_nll(decoder) < before - 0.3
    assert torch.equal(*found)
    # The scope has one centre, and a direction and two similarities for each fact. Keys are 40 wide.
    parameters = sum(one.numel() for one in other.model.parameters())
    assert edit.further_parameters() == parameters + 40 + 4 * (40 + 2)
    # Three blocks of 16 x (16 + 8 + 8 + 16) weights of attention and three of 16 x 20; 400 x 16 for each prompt.
    products = 3 * (16 * 48 + 3 * 16 * 20) * 8 + 2 * (400 * 16 + 4 * 40)
    assert edit.further_flop([3, 5]) == 2 * products + 3 * 4 * 16 * (6 + 15)


def test_a_sequence_continues_from_the_weights_that_were_trained(gpt2_folder, smaller):
    decoder, other = load(gpt2_folder), load(smaller)
    first = written(decoder, "serac", facts()[:2], other=other)
    stored = type(first).read(first.tensors(), first.values())
    both, again = (written(decoder, "serac", facts()[2:], one, other=other) for one in (first, stored))
    assert same(both, again)
    assert torch.equal(both.scope.facts[:2], first.scope.facts)
    fresh = written(decoder, "serac", facts()[2:], other=other)
    assert not any(torch.equal(both.parameters[name], one) for name, one in fresh.parameters.items())


def test_drift_is_that_of_the_other_models_logits(edited):
    """Of a text whose first half is a fact's prompt, compared after the edit is undone."""
    decoder, _, edit = edited
    prompt = prompts_of(decoder)[0]
    block = torch.tensor([[*prompt, *range(20, 20 + len(prompt))]])
    alone = edit.whole.decoder(edit.parameters, decoder)
    with torch.no_grad():
        unedited, wanted = (
            one.logits(one.run(one.embed(block), 0, one.block_count))[0].double().log_softmax(-1)
            for one in (decoder, alone)
        )
    expected = (unedited.exp() * (unedited - wanted)).sum(-1)
    expected[: len(prompt) - 1] = 0
    (table,) = block_drift(decoder, block.tolist(), [edit], most_tokens=4096)
    assert table["kl"].to_pylist() == pytest.approx(expected[:-1].tolist(), rel=1e-4, abs=1e-9)
    assert min(expected[len(prompt) - 1 :]) > 0.01


def test_calls_that_the_other_model_cannot_follow_are_refused(edited):
    decoder, _, edit = edited
    tokens = torch.tensor([prompts_of(decoder)[0]])
    with edit.applied(decoder), torch.no_grad():
        with pytest.raises(ValueError, match="input_ids"):
            decoder.model(inputs_embeds=decoder.embed(tokens))
        with pytest.raises(ValueError, match="labels"):
            decoder.model(tokens, labels=tokens)
        with pytest.raises(ValueError, match="return_dict"):
            decoder.model(tokens, return_dict=False)
        with pytest.raises(ValueError, match="DynamicCache"):
            decoder.model.generate(tokens, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
        with pytest.raises(RuntimeError, match="start at the embedding"):
            decoder.run(decoder.embed(tokens) + 0, 0, 4)
        last = decoder.model(tokens, logits_to_keep=1).logits
        torch.testing.assert_close(last[:, 0], decoder.model(tokens).logits[:, -1])


def test_logits_of_unused_rows_are_left_out_or_the_least():
    given = torch.tensor([[1.0, -2.0, 3.0]])
    assert _fitted(given, 2).tolist() == [[1.0, -2.0]]
    assert _fitted(given, 5).tolist() == [[1.0, -2.0, 3.0, -2.0, -2.0]]


def test_a_model_that_cannot_answer_is_refused_before_a_run(
    refused, arguments, home, gpt2_folder, llama_folder, smaller, tmp_path
):
    words = refused("run", *arguments(*SERAC, "method.serac.counterfactual=embedded"))
    assert "another vocabulary" in words
    assert "the same 400 tokens" in words

    def refusal(name: Path | str) -> str:
        run = Run(compose(arguments(*SERAC, f"method.serac.counterfactual={name}")), Store(home))
        with pytest.raises(InputError) as caught:
            check_input(run, dataset=True)
        return f"{caught.value} {caught.value.details}"

    assert "in another way" in refusal(llama_folder)  # It begins texts with a BOS.
    config = json.loads((smaller / "config.json").read_text())
    shutil.copytree(smaller, tmp_path / "shorter")
    save_json(tmp_path / "shorter" / "config.json", config | {"max_position_embeddings": 64})
    assert "at most 64 tokens" in refusal(tmp_path / "shorter")
    assert "does not exist" in refusal(tmp_path / "none")
    with pytest.raises(InputError, match=r"method\.serac\.blocks"):
        compose(arguments(*SERAC, f"method.serac.counterfactual={gpt2_folder}", "method.serac.blocks=3"))
    tokenizer = load(gpt2_folder).tokenizer
    more, same, less = (Reader(tokenizer, rows, 96) for rows in (448, 400, 399))
    check_counterfactual("it", more, same)
    check_counterfactual("it", same, more)
    with pytest.raises(InputError, match="no embedding"):
        check_counterfactual("it", same, less)


def test_the_recipe_of_the_default_is_as_it_was(arguments):
    """Another model is an input of the edit, with blocks of its own, wherever it lies."""
    given = ([], ["method.serac.counterfactual=any/model"])
    default, other = (load_editor("serac").recipe(compose(arguments(*SERAC, *more)).method) for more in given)
    assert default["serac"] == {"blocks": 2, "threshold": 0.5, "texts": 20}
    assert other == {**default, "serac": {"threshold": 0.5, "texts": 20}}


@torch.no_grad()
def test_a_notebook_edits_with_another_model(gpt2_folder, llama_folder, smaller, tmp_path):
    model, decoder = load_plain(gpt2_folder), load(gpt2_folder)
    given = [{"subject": one.subject, "prompt": one.template, "target_new": one.target_new} for one in facts()[:2]]

    def edited_with(folder: Path) -> factsmith.ModelEdit:
        settings = {"method.training.steps": 2, "method.serac.texts": 2, "method.serac.counterfactual": str(folder)}
        return factsmith.edit(model, decoder.tokenizer, given, "serac", layers=[1], settings=settings, progress=False)

    edit = edited_with(smaller)
    edit.save(tmp_path / "edit")
    tokens = torch.tensor([prompts_of(decoder)[0]])
    alone = edit.edit.whole.decoder(edit.edit.parameters, decoder)
    wanted = alone.logits(alone.run(alone.embed(tokens), 0, alone.block_count))[0, -1]
    for one in (edit, factsmith.load_edit(tmp_path / "edit", model, decoder.tokenizer)):
        with one.applied() as changed:
            torch.testing.assert_close(changed(tokens).logits[0, -1], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="in another way"):
        edited_with(llama_folder)


def test_a_run_with_a_model_of_the_hub(pipeline, arguments, home, hub, smaller, gpt2_folder, tmp_path):
    """Its plan names its stages, its cost is measured, and its export needs neither hub nor cache."""
    hub.publish("somebody/smaller", smaller)
    given = [
        *SERAC, "method.training.steps=5", "method.serac.texts=2", "method.context_samples=[]", "drift.blocks=2",
        "dataset.batches=1", "method.batch_size=2", "method.serac.counterfactual=somebody/smaller",
    ]  # fmt: skip
    settings = compose(arguments(*given))
    planned = plan(Run(settings, Store(home)))
    report = pipeline(*given)
    assert [stage.name for stage in planned] == [stage.name for stage in report.stages]
    assert all(stage.missing == 0 for stage in plan(Run(settings, Store(home))) if stage.name != "inference")
    sizes = [sum(one.numel() for one in load(folder).model.parameters()) for folder in (smaller, gpt2_folder)]
    assert report.inference.parameters > 100 * sizes[0] / sizes[1]
    (artifact,) = artifacts(Store(home), "edit")
    (model,) = (one for one in artifacts(Store(home), "model") if one.summary["architecture"] == "llama")
    assert artifact.manifest.recipe["series"]["inputs"]["counterfactual model"] == model.address.partition("/")[2]
    edit_flow(settings, tmp_path / "edited")
    shutil.rmtree(tmp_path / "hf")
    fetched = hub.fetched()
    decoder, loaded = load(gpt2_folder), load_edited(tmp_path / "edited")
    about = json.loads((tmp_path / "edited" / "factsmith.json").read_text())
    prompts = prompts_of(decoder, [fact["template"].replace("{}", fact["subject"]) for fact in about["facts"]])
    with read_edit(artifact).applied(decoder):
        wanted = logits(decoder, prompts)
    assert not torch.allclose(wanted, logits(decoder, prompts), atol=1e-2)
    for row, prompt in enumerate(prompts):
        found = loaded(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(found, wanted[row, : len(prompt)], rtol=1e-4, atol=1e-4)
    assert hub.fetched() == fetched
