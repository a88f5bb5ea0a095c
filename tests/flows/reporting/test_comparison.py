"""Comparisons of runs against hand-computed values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from rich.console import Console

from factsmith.flows.reporting.comparison import ScoredRun, compare
from factsmith.flows.reporting.runs import comparison_tables
from factsmith.flows.reporting.text_table import TextTable
from factsmith.tasks.evaluation.summary import RecordValues

SETTINGS = {"method.name": "memit", "method.ridge": "0.0", "dataset.limit": "null"}


def values(es: Sequence[float], ps: Sequence[float] | None, facts: Sequence[str]) -> RecordValues:
    if ps is None:
        return RecordValues(tuple(facts), ("ES",), np.array([es], dtype=np.float64).T, {})
    columns = np.array([es, ps], dtype=np.float64).T
    return RecordValues(tuple(facts), ("ES", "PS"), columns, {"S": ("ES", "PS")})


def scored(
    name: str,
    es: Sequence[float],
    ps: Sequence[float] | None = None,
    *,
    before: Sequence[float] | None = None,
    facts: Sequence[str] = (),
    **settings: str,
) -> ScoredRun:
    names = facts or [f"fact{place}" for place in range(len(es))]
    return ScoredRun(
        id=name * 32,
        name=f"run {name}",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        settings={**SETTINGS, **{key.replace("_", "."): value for key, value in settings.items()}},
        metrics=["ES", "PS", "S"] if ps is not None else ["ES"],
        values={
            "before": values(before or [0.0] * len(es), ps and [0.0] * len(es), names),
            "after": values(es, ps, names),
        },
    )


HALF = [0.0, 100.0] * 10
MOST = [100.0] * 18 + [0.0] * 2


def test_the_same_scores_differ_nowhere():
    found = compare([scored("a", HALF, MOST), scored("b", HALF, MOST)])
    assert found.settings == {}
    assert set(found.scores) == {"after"}
    assert list(found.scores["after"]) == ["ES", "PS", "S"]
    assert found.means == ["S"]
    for one, other in found.scores["after"].values():
        assert one.difference is None
        assert one.noise is None
        assert other.interval == one.interval
        assert (other.difference.value, other.difference.low, other.difference.high) == (0, 0, 0)
        assert other.noise


def test_a_difference_on_every_fact_is_no_noise_and_one_on_some_facts_both_ways_is():
    better = [value + 1 for value in HALF]
    mixed = [value + (3 if place % 4 else -8) for place, value in enumerate(HALF)]
    found = compare([scored("a", HALF), scored("b", better), scored("c", mixed)]).scores["after"]["ES"]
    assert found[1].difference.value == found[1].difference.low == found[1].difference.high == 1
    assert not found[1].noise
    assert found[2].difference.value == pytest.approx((15 * 3 - 5 * 8) / 20)
    assert found[2].noise


def test_differences_are_from_the_first_run():
    found = compare([scored("a", [10.0] * 5), scored("b", [30.0] * 5), scored("c", [20.0] * 5)])
    assert [one.difference and one.difference.value for one in found.scores["after"]["ES"]] == [None, 20, 10]
    assert [one.interval.value for one in found.scores["after"]["ES"]] == [10, 30, 20]


def test_runs_on_other_facts_are_not_paired():
    """Paired, a constant difference would have no width; among other facts it drowns in what makes facts hard."""
    better = [value + 1 for value in HALF]
    shifted = [f"fact{place + 5}" for place in range(20)]
    found = compare([scored("a", HALF), scored("b", better), scored("c", better, facts=shifted)])
    assert [(run.facts, run.shared, run.paired) for run in found.runs] == [
        (20, 20, True),
        (20, 20, True),
        (20, 15, False),
    ]
    _, paired, apart = found.scores["after"]["ES"]
    assert not paired.noise
    assert apart.difference.low < -10 < 10 < apart.difference.high
    assert apart.noise
    assert [row[4] for row in comparison_tables(found)[0].rows] == [
        "facts",
        "paired, facts",
        "independent, facts",
    ]


def test_facts_in_another_order_are_the_same_facts():
    names = [f"fact{place}" for place in range(20)]
    found = compare([scored("a", HALF), scored("b", HALF[::-1], facts=names[::-1])])
    assert found.runs[1].paired
    assert found.scores["after"]["ES"][1].difference.high == 0


def test_settings_that_differ_are_named_and_no_others():
    one = scored("a", HALF, corpus_seed="1")
    other = scored("b", HALF, method_name="emmet", method_slack="0.1")
    assert compare([one, other]).settings == {
        "method.name": ["memit", "emmet"],
        "corpus.seed": ["1", None],
        "method.slack": [None, "0.1"],
    }
    sheet = comparison_tables(compare([one, other]))[1]
    assert sheet.rows == [["method.name", "memit", "emmet"], ["corpus.seed", "1", "-"], ["method.slack", "-", "0.1"]]


def test_a_metric_that_one_run_does_not_tell_is_shown_with_a_dash():
    for runs, told in (
        ([scored("a", HALF, MOST), scored("b", HALF)], 0),
        ([scored("a", HALF), scored("b", HALF, MOST)], 1),
    ):
        found = compare(runs)
        for name in ("PS", "S"):
            scores = found.scores["after"][name]
            assert scores[1 - told] is None
            assert scores[told].interval.value > 0
            assert scores[told].difference is None
        row = next(row for row in comparison_tables(found)[-1].rows if row[0] == "PS")
        assert [row[2 - told], row[3]] == ["-", "-"]


def test_what_the_unedited_models_score_is_shown_where_it_differs():
    before = [10.0, 20.0, 60.0]
    assert set(compare([scored("a", before, before=before), scored("b", before, before=before)]).scores) == {"after"}
    reordered = scored("b", [0.1, 0.2, 0.3], before=[0.3, 0.2, 0.1])
    assert set(compare([scored("a", [0.1, 0.2, 0.3], before=[0.1, 0.2, 0.3]), reordered]).scores) == {"after"}
    found = compare([scored("a", before, before=before), scored("b", before, before=[10.0, 20.0, 63.0])])
    assert list(found.scores) == ["before", "after"]
    assert found.scores["before"]["ES"][1].difference.value == pytest.approx(1)


def test_tables_say_which_differences_are_noise():
    mixed = [value + (3 if place % 4 else -8) for place, value in enumerate(HALF)]
    sheet = comparison_tables(compare([scored("a", HALF), scored("b", mixed, method_name="emmet")]))[-1]
    assert sheet.columns == ["", "aaaaaaaa", "bbbbbbbb", "bbbbbbbb - aaaaaaaa"]
    assert sheet.rows[0][3].startswith(" +0.2 [-")
    assert sheet.rows[0][3].endswith("] noise")
    sheet = comparison_tables(compare([scored("a", [10.0] * 3), scored("b", [12.5] * 3)]))[-1]
    assert sheet.rows == [["ES", " 10.0 [10.0, 10.0]", " 12.5 [12.5, 12.5]", " +2.5 [+2.5, +2.5]"]]
    sheet = comparison_tables(compare([scored("a", [10.0] * 3), scored("b", [10.0] * 3)]))[-1]
    assert sheet.rows[0][3].strip() == "0.0 no difference"


def test_abilities_stand_side_by_side_and_no_table_is_empty():
    one, other = scored("a", HALF), scored("b", HALF)
    titles = [table.title for table in comparison_tables(compare([one, other]))]
    assert "general abilities of the edited model" not in titles
    asked = replace(one, abilities={"SST-2 likelihood accuracy": 71.0, "lm-eval arc_easy acc": 0.43215})
    table = comparison_tables(compare([asked, other]))[-1]
    assert table.title == "general abilities of the edited model"
    assert table.rows == [["SST-2 likelihood accuracy", "71", "-"], ["lm-eval arc_easy acc", "0.4321", "-"]]


def test_many_runs_have_a_row_each():
    runs = [scored(name, [10.0 * place] * 3) for place, name in enumerate("abcdef")]
    sheet = comparison_tables(compare(runs))[-1]
    assert [row[:2] for row in sheet.rows] == [["ES", name * 8] for name in "abcdef"]
    assert sheet.rows[5][2:] == [" 50.0 [50.0, 50.0]", "+50.0 [+50.0, +50.0]"]
    assert max(len("  ".join(row)) for row in sheet.rows) < 80


def test_markdown_keeps_its_columns():
    runs = [scored("a", HALF, MOST), scored("b", HALF, MOST, dataset_path="a|b.json")]
    text = [sheet.markdown() for sheet in comparison_tables(compare(runs))]
    assert "| dataset.path | - | a\\|b.json |" in text[1]
    assert "| **S** | **64.3 [" in text[2]
    for sheet, printed in zip(comparison_tables(compare(runs)), text, strict=True):
        lines = [line for line in printed.splitlines() if line.startswith("|")]
        assert len(lines) == len(sheet.rows) + 2
        assert {line.replace(r"\|", "").count("|") for line in lines} == {len(sheet.columns) + 1}


def test_in_a_narrow_terminal_a_long_name_breaks_and_an_id_does_not():
    sheet = TextTable("runs", ["run", "name"], labels=2, wrapped=["name"])
    sheet.add("72523f7e", "method.sequence.evaluate_at=[10,25,50] method.sequence.history=full")
    console = Console(width=40)
    with console.capture() as captured:
        console.print(sheet.terminal())
    text = captured.get()
    assert "72523f7e" in text
    assert "…" not in text
