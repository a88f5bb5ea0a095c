"""The scope classifier of SERAC, with keys in a plane."""

from __future__ import annotations

import math

import pytest
import torch

from factsmith.tasks.editors.memory.scope import Scope


def at(*degrees: float) -> torch.Tensor:
    """Keys in these directions from (1, 2), at different distances."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.tensor([1.0, 2.0]) + torch.arange(1, len(degrees) + 1)[:, None] * torch.stack(
        [angles.cos(), angles.sin()], dim=1
    )


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_a_threshold_is_between_a_facts_own_prompts_and_the_nearest_other_one():
    scope = Scope.empty(torch.tensor([1.0, 2.0]), share=0.25)
    # Directions 10 and 100 degrees. The nearest others are a text at 60 degrees and the other fact's prompt at 80.
    scope = scope.extended(torch.stack([at(0, 20), at(80, 120)]), [at(60, 200), at(250)])
    assert scope.inside.tolist() == pytest.approx([cosine(10), cosine(20)])
    assert scope.outside.tolist() == pytest.approx([cosine(50), cosine(80)])
    expected = [0.25 * cosine(own) + 0.75 * cosine(other) for own, other in ((10, 50), (20, 80))]
    assert scope.thresholds.tolist() == pytest.approx([one - 1e-3 for one in expected])
    # The thresholds are at 43 and 69 degrees from the facts. Both scopes have 50 degrees, the second by more.
    assert scope.find(at(-32, -35, 50, 100, 165, 172)).tolist() == [0, -1, 1, 1, 1, -1]


def test_a_later_fact_narrows_the_scopes_of_those_before_it():
    scope = Scope.empty(torch.tensor([1.0, 2.0]), share=0.9).extended(at(0)[None], [at(180)])
    assert scope.outside.tolist() == pytest.approx([-1])
    both = scope.extended(at(30)[None], [at(180)])
    assert both.outside.tolist() == pytest.approx([cosine(30), cosine(30)])
    assert scope.find(at(22, 15)).tolist() == [0, 0]
    assert both.find(at(22, 8, 15)).tolist() == [1, 0, -1]
    # A prompt of two facts remains within the scope of both.
    assert both.extended(at(0)[None], [at(180)]).find(at(0)).tolist()[0] in (0, 2)
