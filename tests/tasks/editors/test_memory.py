"""Laws of edits with a memory, on tiny models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import TypeAdapter

from factsmith.tasks.decoder.batching import Prompts, pad
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.generation import continuations
from factsmith.tasks.decoder.likelihood import continuation_likelihoods
from factsmith.tasks.decoder.text import EncodedPrompt, encode_prompt
from factsmith.tasks.editors.editor import Task, load_editor
from factsmith.tasks.editors.memory.edit import MemoryEdit
from factsmith.tasks.editors.memory.texts import written_texts
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.facts.contexts import CLEAN
from tests.conftest import load
from tests.edits import facts, weights

LAYER = 1
SETTINGS = {
    "grace": {"training": {"steps": 30, "learning_rate": 1.0, "stop_loss": 0}, "grace": {"radius": 0.5}},
    "melo": {"training": {"steps": 30, "learning_rate": 0.1, "stop_loss": 0}, "melo": {"radius": 0.5, "facts": 3}},
    "serac": {"training": {"steps": 30, "learning_rate": 0.01, "stop_loss": 0.02}, "serac": {"texts": 4}},
    "wise": {
        "training": {"steps": 30, "learning_rate": 0.05, "stop_loss": 0.02},
        "wise": {"optimiser": "adam", "unrelated_most": 0.5, "facts_least": 2, "gap": 1, "texts": 4, "norm": None},
    },
}
UNRELATED = ["Nobody", "The instrument of nobody", "Rain and"]


def written(decoder: Decoder, name: str, requests=None, before=None, *, other=None, **more) -> MemoryEdit:
    """An edit of the editor ``name``, with ``other`` as its counterfactual model."""
    given = {"name": name, "editor": name, "layers": [LAYER], **SETTINGS[name], **more}
    if other is not None:
        given["serac"] = {**given["serac"], "counterfactual": "a folder"}
    method = TypeAdapter(WritingSettings).validate_python(given)
    task = Task(requests or facts(), [CLEAN], method.layers, method, 4096, other)
    edit = load_editor(name).write(decoder, before, task).edit
    assert isinstance(edit, MemoryEdit)
    return edit


def prompts_of(decoder: Decoder, texts: list[str] | None = None) -> list[tuple[int, ...]]:
    texts = [*(one.prompt for one in facts()), *UNRELATED] if texts is None else texts
    return [encode_prompt(decoder.tokenizer, text).tokens for text in texts]


@torch.no_grad()
def logits(decoder: Decoder, prompts: list[tuple[int, ...]]) -> torch.Tensor:
    with decoder.prompted([len(prompt) - 1 for prompt in prompts]):
        return decoder.logits(decoder.run(decoder.embed(pad(prompts)), 0, decoder.block_count))


def mean_nll(decoder: Decoder) -> float:
    """Mean NLL of the new objects."""
    asked = [encode_prompt(decoder.tokenizer, one.template, one.subject, one.target_new) for one in facts()]
    found = continuation_likelihoods(decoder, asked, most_tokens=4096)
    return sum(one.nll for one in found) / len(found)


@pytest.fixture(params=["grace", "melo", "serac", "wise"])
def name(request) -> str:
    return request.param


@pytest.fixture(params=["gpt2_folder", pytest.param("llama_folder", marks=pytest.mark.slow)])
def tiny(request) -> Callable[[], Decoder]:
    return load(request.getfixturevalue(request.param))


def test_facts_are_answered_and_other_prompts_keep_their_bits(tiny, name):
    """In a batch with prompts of facts too. The weights are untouched, also while the edit is applied."""
    before, prompts = weights(tiny), prompts_of(tiny)
    unedited, likelihoods = logits(tiny, prompts), [mean_nll(tiny)]
    with written(tiny, name).applied(tiny):
        with tiny.prompted([len(prompt) - 1 for prompt in prompts]) as asked, torch.no_grad():
            edited = tiny.logits(tiny.run(tiny.embed(pad(prompts)), 0, tiny.block_count))
        likelihoods.append(mean_nll(tiny))
        assert all(map(torch.equal, weights(tiny), before))
    (decided,) = asked.decided.values()
    answered = (decided >= 0).tolist()
    assert answered[: len(facts())] == [True] * len(facts())
    assert not all(answered)
    for row, prompt in enumerate(prompts):
        same = torch.equal(edited[row, : len(prompt)], unedited[row, : len(prompt)])
        assert same == (not answered[row]), row
    assert likelihoods[1] < likelihoods[0] - 0.3  # random models learn objects of several tokens slowly
    assert all(map(torch.equal, weights(tiny), before))
    assert torch.equal(logits(tiny, prompts), unedited)
    assert not tiny.has_memory


def test_what_is_generated_is_what_teacher_forcing_predicts(tiny, name):
    """Generated tokens, and tokens that are given, follow what was decided at the end of the prompt."""
    prompts = prompts_of(tiny)
    with written(tiny, name).applied(tiny):
        # Some tokens are shared with another prompt, so a pass must not serve both.
        asked = [*prompts, prompts[0][:-1]]
        found = continuations(tiny, asked, [len(prompt) + 6 for prompt in asked], most_tokens=4096)
        encoded = [EncodedPrompt((*prompt, *more), len(more)) for prompt, more in zip(asked, found, strict=True)]
        likelihoods = continuation_likelihoods(tiny, encoded, most_tokens=4096)
    assert [one.correct for one in likelihoods] == [6] * len(asked)


def test_an_edit_is_the_same_after_it_was_stored(tiny, name):
    edit = written(tiny, name)
    again = type(edit).read({key: tensor.clone() for key, tensor in edit.tensors().items()}, edit.values())
    prompts, found = prompts_of(tiny), []
    for one in (edit, again):
        with one.applied(tiny):
            found.append(logits(tiny, prompts))
    assert torch.equal(*found)
    assert again.summary() == edit.summary()


def test_values_do_not_depend_on_the_facts_beside_them(gpt2_folder):
    """The entries of a batch are those of its facts written one after another."""
    decoder = load(gpt2_folder)
    together, alone = written(decoder, "grace"), None
    for fact in facts():
        alone = written(decoder, "grace", [fact], alone)
    for key, tensor in together.tensors().items():
        torch.testing.assert_close(alone.tensors()[key], tensor, rtol=1e-3, atol=1e-3)


def test_shards_are_filled_one_after_another_and_merged(gpt2_folder):
    decoder = load(gpt2_folder)
    more = {"wise": SETTINGS["wise"]["wise"] | {"shard": 2, "merged": 2, "density": 1.0}}
    edit, found = None, []
    for fact in facts():
        edit = written(decoder, "wise", [fact], edit, **more)
        found.append(edit)
    assert [[(side.shards, len(side.keys)) for side in one.sides] for one in found] == [
        [(1, 1)], [(1, 2)], [(1, 2), (1, 1)], [(2, 4)],
    ]  # fmt: skip
    first, second = (side.change for side in found[2].sides)
    assert torch.equal(first, found[1].sides[0].change)
    merged = found[3].sides[0].change
    alone = (first != 0) & (second == 0)
    # The second shard may still have changed in the last batch, but not where its mask is 0.
    assert torch.equal(merged[alone & (merged == first)], first[alone & (merged == first)])
    assert float((merged == first)[alone].float().mean()) > 0.99
    # A batch that is larger than a shard is not divided.
    assert len(written(decoder, "wise", **more).sides[0].keys) == 4


def test_a_batch_starts_a_block_and_earlier_blocks_stay(gpt2_folder):
    """MELO, at two layers. The index decides at the lower one."""
    decoder = load(gpt2_folder)
    first = written(decoder, "melo", facts()[:3], layers=[1, 2])
    both = written(decoder, "melo", facts()[3:], first, layers=[1, 2])
    assert first.index.values[:, 0].tolist() == [0, 0, 0]
    assert both.index.values[:, 0].tolist() == [0, 0, 0, 1]
    assert torch.equal(both.right[:1], first.right)
    assert torch.equal(both.left[:1], first.left)
    assert both.left.abs().amin((2, 3)).min() > 0  # Both layers of both blocks were trained.
    # A block is the product of its factors, for all tokens of the prompt.
    keys, prompts = torch.randn(1, 3, 40), Prompts([2], torch.device("cpu"))
    keys[0, 2] = both.index.keys[3]
    for place, layer in enumerate((1, 2)):
        added = both.memory(layer, torch.device("cpu"))(prompts, keys, torch.zeros(1, 3, 24))
        expected = torch.einsum("dr,rk,tk->td", both.left[1, place], both.right[1, place], keys[0])
        torch.testing.assert_close(added[0], expected)


@pytest.mark.slow
def test_a_counterfactual_model_has_the_blocks_of_any_family(model_folder):
    """Its own cache in generation included, and in bfloat16."""
    decoder = load(model_folder)
    decoder.model.bfloat16()
    edit, prompts = written(decoder, "serac"), prompts_of(decoder)
    unedited = logits(decoder, prompts)
    with edit.applied(decoder):
        edited = logits(decoder, prompts)
    found = [torch.equal(*(one[row, : len(own)] for one in (unedited, edited))) for row, own in enumerate(prompts)]
    assert found[: len(facts())] == [False] * len(facts())
    assert any(found)
    decoder.model.float()
    test_what_is_generated_is_what_teacher_forcing_predicts(decoder, "serac")


@torch.no_grad()
def test_the_logits_within_a_scope_are_those_of_the_counterfactual_model(gpt2_folder):
    """From the prompt's last token on. Its own pass has blocks 0 and 1, with the parameters that were trained."""
    decoder = load(gpt2_folder)
    edit, alone = written(decoder, "serac"), load(gpt2_folder)
    for name, parameter in alone.blocks[:2].named_parameters():
        assert not torch.equal(parameter, edit.parameters[name])
        parameter.copy_(edit.parameters[name])
    prompt = prompts_of(decoder)[0]
    tokens, end = torch.tensor([[*prompt, 7, 8]]), len(prompt) - 1
    unedited = decoder.logits(decoder.run(decoder.embed(tokens), 0, 4))
    with edit.applied(decoder), decoder.prompted([end]):
        found = decoder.logits(decoder.run(decoder.embed(tokens), 0, 4))
        with pytest.raises(RuntimeError, match="start at the first block"):
            decoder.run(decoder.run(decoder.embed(tokens), 0, 4), 1, 4)
    assert torch.equal(found[:, :end], unedited[:, :end])
    assert torch.equal(found[:, end:], alone.logits(alone.run(alone.embed(tokens), 0, 2))[:, end:])
    parameters = sum(one.numel() for one in alone.blocks[:2].parameters())
    assert edit.further_parameters() == parameters + 40 + 4 * (40 + 2)
    # Two blocks of 24 * (72 + 24 + 40 + 40) weights for 8 tokens, which attend to 6 and 15 others. Keys are 40 wide.
    assert edit.further_flop([3, 5]) == 2 * 2 * 24 * 176 * 8 + 2 * 4 * 24 * (6 + 15) + 2 * 2 * 4 * 40


def test_a_counterfactual_model_is_trained_further_and_the_memory_grows(gpt2_folder):
    decoder = load(gpt2_folder)
    first = written(decoder, "serac", facts()[:2])
    both = written(decoder, "serac", facts()[2:], first)
    assert torch.equal(both.scope.facts[:2], first.scope.facts)
    assert len(both.scope.facts) == 4
    fresh = written(decoder, "serac", facts()[2:])
    assert not any(torch.equal(both.parameters[name], one) for name, one in fresh.parameters.items())
    again = written(decoder, "serac", facts()[2:], first)
    assert all(torch.equal(again.parameters[name], one) for name, one in both.parameters.items())


def test_a_shard_changes_only_what_its_mask_allows(gpt2_folder):
    decoder = load(gpt2_folder)
    change = written(decoder, "wise", wise=SETTINGS["wise"]["wise"] | {"mask": 0.3, "norm": 0.01}).sides[0].change
    share = float((change != 0).float().mean())
    assert 0.2 < share < 0.35
    assert float(change.abs().max()) == pytest.approx(0.01)


def test_unrelated_texts_are_the_models_own_and_repeat(gpt2_folder):
    decoder = load(gpt2_folder)
    texts = written_texts(decoder, 5, seed=2)
    assert texts == written_texts(decoder, 5, seed=2) != written_texts(decoder, 5, seed=3)
    assert len({tuple(text) for text in texts}) == 5


def test_a_pass_that_does_not_say_where_its_prompts_end_is_refused(gpt2_folder):
    decoder = load(gpt2_folder)
    with written(decoder, "grace").applied(decoder), pytest.raises(RuntimeError, match="where its prompts end"):
        decoder.run(decoder.embed(pad([[1, 2]])), 0, decoder.block_count)
    assert written(decoder, "grace").further_parameters() == 4 * (40 + 24 + 1)
    assert written(decoder, "grace").further_flop([3, 5]) == 3 * 2 * 4 * 40
    assert written(decoder, "wise").further_flop([3, 5]) == 2 * (2 + 8) * 40 * 24
