"""The rules by which a codebook takes in facts, on keys of two numbers."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.editors.memory.codebook import Codebook

ROME, OSLO = (1, 2), (3,)


def entered(*facts: tuple[float, float, tuple[int, ...]], radius: float = 1.0) -> tuple[Codebook, list[int]]:
    codebook, entries = Codebook.empty(2, 3), []
    for place, (x, y, label) in enumerate(facts):
        value = torch.full((3,), float(place))
        codebook, entry, _ = codebook.entered(torch.tensor([x, y]), label, radius, value)
        entries.append(entry)
    return codebook, entries


def test_a_fact_far_from_all_others_gets_its_own_entry():
    # (3, 4) is 5 from (0, 0), and 5 > radius 1 + radius 1.
    codebook, entries = entered((0, 0, ROME), (3, 4, ROME))
    assert entries == [0, 1]
    assert codebook.radii.tolist() == [1, 1]
    assert codebook.labels == (ROME, ROME)
    assert codebook.values[1].tolist() == [1, 1, 1]


def test_the_same_label_nearby_widens_an_entry():
    codebook, entries = entered((0, 0, ROME), (0, 1.5, ROME), (0, 0.5, ROME))
    assert entries == [0, 0, 0]
    assert codebook.radii.tolist() == pytest.approx([1.5], rel=2e-3)
    assert codebook.values.tolist() == [[0, 0, 0]]
    assert codebook.find(torch.tensor([[0.0, 1.5], [0.0, 1.6]])).tolist() == [0, -1]


def test_another_label_nearby_splits_at_half_the_distance():
    codebook, entries = entered((0, 0, ROME), (0, 1.2, OSLO))
    assert entries == [0, 1]
    assert codebook.radii.tolist() == pytest.approx([0.6 - 1e-5, 0.6], abs=1e-7)
    assert codebook.find(torch.tensor([[0.0, 0.59], [0.0, 0.61], [0.0, 1.9]])).tolist() == [0, 1, -1]


def test_of_two_facts_with_one_prompt_the_later_holds():
    # The first entry is wider than a new one. What it answered besides its own prompt was not about the later fact.
    codebook, entries = entered((3, 4, ROME), (3, 5.8, ROME), (3, 4.0001, OSLO))
    assert entries == [0, 0, 0]
    assert codebook.labels == (OSLO,)
    assert codebook.radii.tolist() == [1]
    assert codebook.values.tolist() == [[2, 2, 2]]
    assert codebook.find(torch.tensor([[3.0, 4.0]])).tolist() == [0]


def test_the_nearest_entry_answers_only_within_its_own_radius():
    codebook, entries = entered((0, 0, ROME), (0, 1.9, ROME), (3, 0, OSLO))
    assert entries == [0, 0, 1]
    # (1.6, 0) is within 1.9 of the first entry, and 1.4 from the other one, which is nearer and ends at 1.
    assert codebook.find(torch.tensor([[1.4, 0.0], [1.6, 0.0], [2.1, 0.0]])).tolist() == [0, -1, 1]


def test_an_empty_codebook_answers_nothing():
    assert Codebook.empty(2, 3).find(torch.zeros(4, 2)).tolist() == [-1] * 4
