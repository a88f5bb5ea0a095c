"""The parts of WISE, by hand."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.decoder.batching import Prompts
from factsmith.tasks.editors.memory.side import Side, margin_losses, merged_changes, random_mask
from factsmith.tasks.editors.methods.wise import SideEdit


def test_a_mask_has_its_share_of_entries_and_belongs_to_its_shard():
    mask = random_mask((200, 300), 0.2, seed=3, shard=0)
    assert set(mask.unique().tolist()) == {0, 1}
    assert float(mask.mean()) == pytest.approx(0.2, abs=4 * (0.16 / 60_000) ** 0.5)  # four standard errors
    assert torch.equal(mask, random_mask((200, 300), 0.2, seed=3, shard=0))
    both = mask * random_mask((200, 300), 0.2, seed=3, shard=1)
    assert float(both.mean()) == pytest.approx(0.04, abs=4 * (0.0384 / 60_000) ** 0.5)


def test_margins_hold_facts_above_unrelated_text():
    facts, unrelated = torch.tensor([[12.0, 30.0], [25.0, 25.0]]), torch.tensor([1.0, 4.0, 9.0, 17.0])
    # unrelated above 5: 4 and 12, mean 8, for every fact and context.
    # facts below 20: 8, 0; 0, 0.
    # gaps below 10, 10 - fact + unrelated: of 12: 2, 7, 15 (and -1), mean 8; of 30: none; of 25: 2 (17), mean 2.
    expected = [((8 + 8 + 8) + (8 + 0 + 0)) / 2, 8 + 0 + 2]
    found = margin_losses(facts, unrelated, most=5, least=20, gap=10)
    assert found.tolist() == pytest.approx(expected)


def test_ties_keeps_the_largest_elects_a_sign_and_averages():
    one = torch.tensor([[4.0, -3.0, 0.1, 2.0]])
    other = torch.tensor([[2.0, 5.0, -0.2, 0.3]])
    # Three of four entries of each are kept: 0.1 and -0.2 are dropped.
    assert merged_changes([one, other], 0.75).tolist() == [[3.0, 5.0, 0.0, pytest.approx(1.15)]]


def routed(edit: SideEdit, keys: torch.Tensor, ends: list[int]) -> tuple[torch.Tensor, Prompts]:
    prompts = Prompts(ends, torch.device("cpu"))
    return edit.memory(0, torch.device("cpu"))(prompts, keys, torch.zeros(*keys.shape[:2], 2)), prompts


def test_a_prompt_goes_to_the_copy_with_the_largest_distance_above_its_threshold():
    first = Side(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[10.0, 0.0]]))  # distance |x|, least 10
    second = Side(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 5.0]]))  # 2 |y|, least 6
    edit = SideEdit(0, 0.5, (first, second))  # thresholds 5 and 3
    at_end = torch.tensor([[4.0, 1.0], [5.5, 0.0], [0.0, 1.6], [6.0, 2.0], [6.0, 4.0]])
    keys = torch.stack([torch.full((5, 2), 9.0), at_end, torch.full((5, 2), 1.0)], dim=1)
    outputs, prompts = routed(edit, keys, [1] * 5)
    (chosen,) = prompts.decided.values()
    assert chosen.tolist() == [-1, 0, 1, 0, 1]  # (6, 4): 6 < 8
    # All tokens of a prompt, and those that follow, use the copy.
    assert outputs[1].tolist() == [[9, 0], [5.5, 0], [1, 0]]
    assert outputs[4].tolist() == [[0, 18], [0, 8], [0, 2]]
    assert outputs[0].abs().sum() == 0


def test_later_passes_keep_the_decision_of_the_prompt():
    side = Side(torch.eye(2), torch.tensor([[10.0, 0.0]]))
    edit = SideEdit(0, 0.5, (side,))
    _, prompts = routed(edit, torch.tensor([[[9.0, 0.0]], [[1.0, 0.0]]]), [0, 0])
    respond, outputs = edit.memory(0, torch.device("cpu")), torch.zeros(2, 1, 2)
    continued = respond(prompts, torch.tensor([[[1.0, 0.0]], [[9.0, 0.0]]]), outputs)
    assert continued.tolist() == [[[1, 0]], [[0, 0]]]
    assert outputs.abs().sum() == 0
