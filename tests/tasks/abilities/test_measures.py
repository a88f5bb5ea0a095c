"""Accuracy, weighted F1 and MCC: against values computed by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from factsmith.tasks.abilities.measures import compared, measured


def test_two_labels_by_hand():
    """Six examples, three of each label; one of label 1 gets no answer.

    Correct: 3 of 6. Label 0: precision 2/3, recall 2/3, F1 2/3. Label 1: precision 1/2, recall 1/3, F1 2/5. MCC with
    t = (3, 3), p = (3, 2, 1): (6 * 3 - 3 * 3 - 3 * 2) / sqrt((36 - 14) (36 - 18)) = 3 / sqrt(396).
    """
    found = measured(2, [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, None])
    assert found == pytest.approx(
        {
            "accuracy": 50,
            "F1": 100 * (2 / 3 + 2 / 5) / 2,
            "MCC": 100 * 3 / 396**0.5,
            "unanswered": 100 / 6,
        }
    )


def test_scikit_learn_agrees():
    generator = np.random.default_rng(0)
    for labels in (2, 4):
        for unanswered in (0, 1):
            correct = generator.integers(labels, size=60).tolist()
            given = generator.integers(labels + unanswered, size=60).tolist()
            found = measured(labels, correct, [None if one == labels else one for one in given])
            assert found["accuracy"] == pytest.approx(100 * accuracy_score(correct, given))
            assert found["F1"] == pytest.approx(100 * f1_score(correct, given, average="weighted", zero_division=0))
            assert found["MCC"] == pytest.approx(100 * matthews_corrcoef(correct, given))
            assert found["unanswered"] == pytest.approx(100 * given.count(labels) / 60)


def test_a_constant_answer_has_no_correlation():
    found = measured(2, [0, 0, 1], [0, 0, 0])
    assert (found["MCC"], found["F1"]) == (0, pytest.approx(100 * (2 / 3) * 0.8))  # F1 of label 0: 2 * 2 / (2 + 3)


def test_intervals_are_those_of_the_binomial_and_pairs_cancel():
    """100 examples, 80 correct. The standard error of the accuracy is sqrt(0.8 * 0.2 / 100) = 4 %."""
    correct, answers = [0, 1] * 50, [0, 1] * 40 + [1, 0] * 10
    (accuracy, *_) = compared("T", "likelihood", 2, correct, answers, [answers])
    assert (accuracy.before, accuracy.after, accuracy.examples) == (80, 80, 100)
    assert accuracy.interval == pytest.approx((80 - 1.96 * 4, 80 + 1.96 * 4), abs=1)
    assert accuracy.change == (0, 0)
    assert accuracy.name == "T likelihood accuracy"


def test_several_edits_are_averaged():
    correct = [0, 1, 0, 1]
    found = compared("T", "generation", 2, correct, correct, [correct, [None] * 4])
    after = {one.metric: (one.before, one.after, one.edits) for one in found}
    assert after["accuracy"] == (100, 50, 2)
    assert after["unanswered"] == (0, 50, 2)
    assert {one.metric: one.change for one in found}["accuracy"] == (-50, -50)
