"""The model card: a header that the hub reads, and what users gave as text."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from factsmith.tasks.export.card import escaped, model_card
from factsmith.tasks.export.form import form_names, load_form

METRICS = {
    "ES": {"meaning": "efficacy", "before": 0.0, "after": 96.875, "low": 90.6, "high": 100.0},
    "S": {"meaning": "score | mean", "before": None, "after": 50.0},
}
ABOUT = {
    "model": "owner/base",
    "revision": "1f" * 20,
    "method": "memit",
    "settings": {"method": {"layers": [3, 4]}},
    "facts": [{"case_id": 0, "subject": "Ilo | <img src=x>", "template": "{} is\n# no heading", "target_new": "*X*"}],
    "weights": "abc",
    "edit": "edit/12",
    "run": "77",
    "scores": {"facts": 32, "metrics": METRICS, "intervals_over": "batches"},
    "rank": 5,
    "modules": {"a": {"rank": 5}, "b": {"rank": 2}},
}


@pytest.mark.parametrize("name", form_names())
def test_the_hub_reads_the_header(name):
    card = ModelCard(model_card(load_form(name), ABOUT))
    assert card.data.base_model == "owner/base"
    assert card.data.library_name == load_form(name).library
    assert {"factsmith", "knowledge-editing"} <= set(card.data.tags)
    assert "base_model" not in ModelCard(model_card(load_form(name), _without("revision"))).data.to_dict()


def _without(name):
    return {key: value for key, value in ABOUT.items() if key != name}


def test_scores_have_their_intervals():
    text = model_card(load_form("checkpoint"), ABOUT)
    assert "| ES | 0.0 | 96.9 | 90.6 to 100.0 | efficacy |" in text
    assert "| S |  | 50.0 |  | score &#124; mean |" in text
    assert "bootstrap over batches" in text
    held = {"facts": 3, "facts_held": 2, "facts_held_before": 1}
    assert "2 of 3 facts hold" in model_card(load_form("checkpoint"), {**ABOUT, "scores": held})
    assert "not scored" in model_card(load_form("checkpoint"), _without("scores"))


def test_what_users_gave_is_text():
    """Nothing of it is a tag, a heading, a cell, emphasis, a link, a formula or an account."""
    text = model_card(load_form("checkpoint"), ABOUT)
    assert "| Ilo &#124; &#60;img src=x&#62; is &#35; no heading | &#42;X&#42; |" in text
    assert "<img" not in text
    assert escaped("[a](https://b.c) www.d.e $x$ @f &lt; ~g~ a_b _c_") == (
        "&#91;a&#93;(https:&#47;&#47;b.c) www&#46;d.e &#36;x&#36; &#64;f &amp;lt; &#126;g&#126; a_b &#95;c&#95;"
    )


def test_servers_of_adapters_are_told_the_rank():
    text = model_card(load_form("adapter"), ABOUT)
    assert "--max-lora-rank 8" in text
    assert "rank_pattern" in text
    even = {**ABOUT, "rank": 600, "modules": {"a": {"rank": 600}}}
    assert "merge this adapter of rank 600" in model_card(load_form("adapter"), even)
    assert "rank_pattern" not in model_card(load_form("adapter"), even)


def test_a_truncated_edit_says_so():
    changes = [
        {"place": "layer 3", "rank": 1, "of": 4, "error": 0.125},
        {"place": "layer 4", "rank": 1, "of": 4, "error": 0.5},
    ]
    cut = {"rank": 1, "exact": "edit/99", "changes": changes}
    assert "to rank 1; relative error at most 50.00%; exact: edit/99" in model_card(
        load_form("adapter"), {**ABOUT, "truncation": cut}
    )
