"""Context templates."""

from __future__ import annotations

import json

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.contexts import read_contexts, sample_contexts
from factsmith.tasks.facts.settings import ContextSample

STARTS = ("The", "Because", "I")
SAMPLES = [ContextSample(start=start, length=10) for start in STARTS]


def test_the_same_seed_gives_the_same_templates(decoder):
    torch.manual_seed(0)
    first = sample_contexts(decoder, SAMPLES, seed=3)
    torch.manual_seed(1)
    assert sample_contexts(decoder, SAMPLES, seed=3) == first
    assert sample_contexts(decoder, SAMPLES, seed=4) != first


def test_templates_start_as_they_should_and_hold_one_prompt(decoder):
    clean, *prefixed = sample_contexts(decoder, SAMPLES, seed=0)
    assert clean == "{}"
    assert len(prefixed) == len(STARTS)
    for start, template in zip(STARTS, prefixed, strict=True):
        assert template.startswith(start)
        assert template.endswith(". {}")
        assert template.count("{") == template.count("}") == 1
        assert "<s>" not in template


def test_several_prefixes_of_one_kind_are_drawn_apart(decoder):
    samples = [ContextSample(start="The", length=5, count=4), ContextSample(start="You", length=8, count=2)]
    _, *prefixed = sample_contexts(decoder, samples, seed=0)
    assert [template.split()[0][:3] for template in prefixed] == ["The"] * 4 + ["You"] * 2
    assert len(set(prefixed)) > 4


def test_the_global_generator_is_left_alone(decoder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample_contexts(decoder, SAMPLES, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_given_templates_are_read_clean_one_first(tmp_path):
    path = tmp_path / "contexts.json"
    path.write_text(json.dumps(["Well. {}", "{}"]))
    assert read_contexts(path) == ("{}", "Well. {}")


@pytest.mark.parametrize("content", ["[]", "{}", '["no place"]', '["{} and {}"]', "[1]", "not json"])
def test_unusable_templates_are_refused(tmp_path, content):
    path = tmp_path / "contexts.json"
    path.write_text(content)
    with pytest.raises(InputError):
        read_contexts(path)
