"""Question forms of every relation, and subjects recovered from prompts."""

from __future__ import annotations

import pytest

from factsmith.tasks.chat.questions import question_forms, subject_in

RELATIONS = [
    17, 19, 20, 27, 30, 36, 37, 39, 101, 103, 106, 108, 127, 131, 136, 138, 140, 159, 176, 178, 190, 264, 276, 279, 361,
    364, 407, 413, 449, 463, 495, 530, 641, 740, 937, 1303, 1412,
]  # fmt: skip
"""The relations of CounterFact, and those of ParaRel that it could have."""


def test_every_relation_has_a_question_and_other_words_for_it():
    for relation in RELATIONS:
        forms = question_forms(f"P{relation}")
        assert len(set(forms)) == len(forms) >= 2, relation
        for form in forms:
            assert form.count("{}") == 1, form
            assert form.endswith("?"), form
    assert question_forms("P0") == question_forms(None) == ()


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Ada Lovelace works in", "Ada Lovelace"),
        ("Ada Lovelace, who works in", "Ada Lovelace"),
        ("Ada Lovelace, who never works in", None),
        ("The job of Ada Lovelace is", "Ada Lovelace"),
        ("The job of is", None),
        ("The job of   is", None),
        ("Ada Lovelace lives in", None),
    ],
)
def test_a_subject_is_found_by_the_longest_form(prompt, subject):
    forms = {"{} works in", "{}, who works in", "The job of {} is", "{}, who never"}
    assert subject_in(prompt, forms) == subject
